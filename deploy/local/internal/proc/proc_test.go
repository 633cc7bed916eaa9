package proc

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

var shared *Host // one per program: it reaps every child

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "proc")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	shared, err = NewHost(Options{State: dir, PidDir: dir, LogDir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		panic(err)
	}
	code := m.Run()
	if err := shared.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if _, err := shared.Start(Spec{Name: "late", Argv: []string{"true"}, Dir: dir, Env: os.Environ()}); err == nil {
		fmt.Fprintln(os.Stderr, "a closed host still starts")
		return 1
	}
	return code
}

var runs atomic.Int64

// run a process under a name that no other has, not even that of the same test with -count: logs are appended to.
func run(t *testing.T, name string, argv ...string) *Process {
	t.Helper()
	name = fmt.Sprintf("%s-%d", name, runs.Add(1))
	p, err := shared.Start(Spec{Name: name, Argv: argv, Dir: shared.opts.State, Env: os.Environ()})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func await(t *testing.T, p *Process) {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(10 * time.Second):
		t.Fatalf("%s does not end", p.Name)
	}
}

func TestHowAProcessEndedIsTold(t *testing.T) {
	t.Parallel()
	for script, want := range map[string]string{"exit 0": "exit status 0", "exit 3": "exit status 3", "kill -9 $$": "killed by signal: killed"} {
		p := run(t, "ends-"+fmt.Sprint(len(script)), "sh", "-c", script)
		await(t, p)
		if p.Ended() != want || p.Failed() != (want != "exit status 0") {
			t.Errorf("%s: %s, failed %v", script, p.Ended(), p.Failed())
		}
	}
}

func TestOneThatIgnoresTermIsKilledAfterItsGrace(t *testing.T) {
	t.Parallel()
	p := run(t, "ignores", "sh", "-c", "trap '' TERM; echo set; while true; do sleep 1; done")
	awaitLog(t, p.Name, "set")
	began := time.Now()
	p.Stop(200*time.Millisecond, nil)
	if took := time.Since(began); took < 200*time.Millisecond || took > 5*time.Second || p.Ended() != "killed by signal: killed" {
		t.Errorf("%s after %v", p.Ended(), took)
	}
}

func TestAStoppedProcessEndsInOrder(t *testing.T) {
	t.Parallel()
	p := run(t, "paused", "sh", "-c", "trap 'exit 7' TERM; echo set; kill -STOP $$; while true; do sleep 0.01; done")
	awaitLog(t, p.Name, "set")
	p.Stop(5*time.Second, nil)
	if p.Ended() != "exit status 7" {
		t.Errorf("%s", p.Ended())
	}
}

func TestThePidFileNamesPidAndStartTime(t *testing.T) {
	t.Parallel()
	p := run(t, "named", "sleep", "1000")
	path := filepath.Join(shared.opts.PidDir, p.Name+".pid")
	pid, start, err := readPid(path)
	if err != nil || pid != p.PID || start != p.Ticks() || start == 0 || !alive(pid, start) || alive(pid, start+1) {
		t.Errorf("pid %d start %d, %v", pid, start, err)
	}
	p.Stop(time.Second, nil)
	if _, err := os.Stat(path); err == nil {
		t.Error("the pid file outlives its process")
	}
	if alive(pid, start) {
		t.Error("a dead process is called alive")
	}
}

func TestMistakesInACommandAreSaid(t *testing.T) {
	t.Parallel()
	dir := shared.opts.State
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		argv []string
		dir  string
		want string
	}{
		{nil, dir, "no command"},
		{[]string{"true"}, "/nowhere", "working directory /nowhere is not there"},
		{[]string{"./nothing"}, dir, "nothing is not there"},
		{[]string{"./plain"}, dir, "plain cannot be executed"},
		{[]string{"no-such-program"}, dir, "no-such-program is not in PATH"},
	} {
		_, err := shared.Start(Spec{Name: "mistake", Argv: c.argv, Dir: c.dir, Env: os.Environ()})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v in %s: %v, want %s", c.argv, c.dir, err, c.want)
		}
	}
}

func TestLogsRotate(t *testing.T) {
	t.Parallel()
	l := &logFile{path: filepath.Join(t.TempDir(), "x.log")}
	line := []byte(strings.Repeat("x", 1<<20))
	for range 45 {
		if _, err := l.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]bool{"": true, ".1": true, ".2": true, ".3": false} {
		info, err := os.Stat(l.path + name)
		if (err == nil) != want || err == nil && info.Size() > logBytes {
			t.Errorf("x.log%s: %v", name, err)
		}
	}
	l.file.Close()
}

func TestStatReadsAnyName(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "a ) R 1 (b")
	if err := os.Symlink("/bin/sleep", program); err != nil {
		t.Fatal(err)
	}
	p := run(t, "odd", program, "1000")
	s, err := readStat(p.PID)
	if err != nil || s.parent != os.Getpid() || s.group != p.PID {
		t.Errorf("%+v, %v", s, err)
	}
	p.Stop(time.Second, nil)
}

func awaitLog(t *testing.T, name, want string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		content, _ := os.ReadFile(filepath.Join(shared.opts.LogDir, name+".log"))
		if strings.Contains(string(content), want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%q is not in the log of %s", want, name)
		}
	}
}
