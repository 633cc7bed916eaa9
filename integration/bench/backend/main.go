// Command backend is what the proxies of the edge's benchmark are in front of. It does as little as a server can, so that what is
// measured is the proxy: no net/http, one goroutine a connection, answers from memory.
//
//	GET  …/small   64 bytes
//	GET  …/large   1 MiB
//	POST …         reads the body, 64 bytes
package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strconv"
)

var (
	small = answer(64)
	large = answer(1 << 20)
)

func answer(size int) []byte {
	head := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n", size)
	return append([]byte(head), bytes.Repeat([]byte("slimfaas"), size/8)...)
}

func main() {
	l, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("ready")
	for {
		conn, err := l.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer conn.Close()
			if err := serve(conn); err != nil && !errors.Is(err, io.EOF) {
				log.Print(err)
			}
		}()
	}
}

func serve(conn net.Conn) error {
	in := bufio.NewReaderSize(conn, 16<<10)
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return nil //nolint:nilerr // the proxy closes what it does not need
		}
		out := small
		if bytes.Contains(line, []byte("/large ")) {
			out = large
		}
		length, chunked := 0, false
		for {
			line, err := in.ReadSlice('\n')
			if err != nil {
				return err
			}
			if len(line) <= 2 {
				break
			}
			name, value, _ := bytes.Cut(line, []byte(":"))
			switch value = bytes.TrimSpace(value); {
			case bytes.EqualFold(name, []byte("content-length")):
				if length, err = strconv.Atoi(string(value)); err != nil {
					return err
				}
			case bytes.EqualFold(name, []byte("transfer-encoding")):
				chunked = true
			}
		}
		if chunked {
			return fmt.Errorf("a body in chunks is nothing this benchmark sends")
		}
		if length > 0 {
			if _, err := io.CopyN(io.Discard, in, int64(length)); err != nil {
				return err
			}
		}
		if _, err := conn.Write(out); err != nil {
			return err
		}
	}
}
