// Command proxy is the peer of the edge's benchmark that Go's users would write: net/http in front, a plain httputil.ReverseProxy
// behind it, as many idle connections as there are callers.
//
//	proxy 127.0.0.1:8080 http://127.0.0.1:9000
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"time"
)

func main() {
	target, err := url.Parse(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 256
	transport.DisableCompression = true
	proxy := &httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.SetXForwarded()
		},
	}
	l, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("ready")
	log.Fatal((&http.Server{Handler: proxy, ReadHeaderTimeout: 10 * time.Second}).Serve(l))
}
