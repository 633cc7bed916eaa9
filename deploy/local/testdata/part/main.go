// Command part stands in for edge, queue and scaler in the supervisor's own tests: it listens where it is told, says it is
// ready, and leaves a grandchild behind. The real programs run in the integration module.
package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM) // before it says that it is ready
	program := strings.ToUpper(filepath.Base(os.Args[0]))
	for _, line := range os.Environ() {
		fmt.Println("env", line)
	}
	if dir := os.Getenv("QUEUE_DATA_DIR"); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, "data"), nil, 0o600); err != nil {
			panic(err)
		}
	}
	if err := exec.Command("setsid", "sleep", "3600").Start(); err != nil {
		panic(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "OK") })
	for _, use := range []string{"ADMIN", "PUBLIC"} {
		if address := os.Getenv(program + "_" + use + "_ADDRESS"); address != "" {
			go func() { panic(http.ListenAndServe(address, mux)) }()
		}
	}
	<-ended
	if f, err := os.OpenFile("order", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600); err == nil { // in the state directory
		fmt.Fprintln(f, program)
		f.Close()
	}
}
