package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/slimfaas/slimfaas/shared/wire"
)

// longestSocketPath fits into sockaddr_un (108 bytes with its NUL).
const longestSocketPath = 107

// Listen makes the socket in the state directory, readable by its owner only. The caller holds the lock of the directory, so
// a socket that is there already belongs to nobody.
func Listen(state string) (net.Listener, error) {
	path := filepath.Join(state, wire.LocalSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("removing an old socket: %w", err)
	}
	short, done, err := shorten(state)
	if err != nil {
		return nil, err
	}
	defer done()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: short})
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	listener.SetUnlinkOnClose(false) // the short name is gone by then; the next start removes the file
	if err := os.Chmod(path, 0o600); err != nil {
		_ = listener.Close()
		return nil, fmt.Errorf("closing the socket to others: %w", err)
	}
	return listener, nil
}

// SocketPath is the socket as a child that starts in the state directory can dial it: absolute where that is short enough.
func SocketPath(state string) string {
	if path := filepath.Join(state, wire.LocalSocket); len(path) <= longestSocketPath {
		return path
	}
	return wire.LocalSocket
}

// shorten names the socket through an open folder when its own name is too long. Call done after use.
func shorten(state string) (path string, done func(), err error) {
	path = filepath.Join(state, wire.LocalSocket)
	if len(path) <= longestSocketPath {
		return path, func() {}, nil
	}
	dir, err := os.Open(state)
	if err != nil {
		return "", nil, fmt.Errorf("opening the state directory: %w", err)
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), wire.LocalSocket), func() { dir.Close() }, nil
}

// Client asks a running supervisor.
type Client struct {
	http  http.Client
	token string
}

// NewClient dials the socket of a state directory.
func NewClient(state, token string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		short, done, err := shorten(state)
		if err != nil {
			return nil, err
		}
		defer done()
		return (&net.Dialer{Timeout: readWithin}).DialContext(ctx, "unix", short)
	}
	return &Client{http: http.Client{Transport: &http.Transport{DialContext: dial}}, token: token}
}

// Status asks for everything that runs.
func (c *Client) Status(ctx context.Context) (wire.LocalStatus, error) {
	var status wire.LocalStatus
	res, err := c.do(ctx, http.MethodGet, wire.LocalPathStatus, nil)
	if err != nil {
		return status, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return status, fmt.Errorf("asking for the status: answered %s", res.Status)
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 16<<20)).Decode(&status); err != nil {
		return status, fmt.Errorf("reading the status: %w", err)
	}
	return status, nil
}

// Change sends a scale or wake request. The state is also there with a refusal.
func (c *Client) Change(ctx context.Context, path string, request any) (int, wire.LocalScaled, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return 0, wire.LocalScaled{}, fmt.Errorf("encoding a request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	res, err := c.do(ctx, http.MethodPost, path, body)
	if err != nil {
		return 0, wire.LocalScaled{}, err
	}
	defer res.Body.Close()
	var scaled wire.LocalScaled
	if err := json.NewDecoder(io.LimitReader(res.Body, maxBody)).Decode(&scaled); err != nil {
		return res.StatusCode, scaled, fmt.Errorf("reading an answer: %w", err)
	}
	return res.StatusCode, scaled, nil
}

// Watch calls each with every event until it returns false or the watch ends.
func (c *Client) Watch(ctx context.Context, each func(wire.LocalEvent) bool) error {
	res, err := c.do(ctx, http.MethodGet, wire.LocalPathWatch, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("watching: answered %s", res.Status)
	}
	decoder := json.NewDecoder(res.Body)
	for {
		var e wire.LocalEvent
		if err := decoder.Decode(&e); err != nil {
			return fmt.Errorf("reading an event: %w", err)
		}
		if !each(e) {
			return nil
		}
	}
}

func (c *Client) do(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://local"+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("making a request: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	res, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking the supervisor: %w", err)
	}
	return res, nil
}
