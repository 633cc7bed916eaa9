package testkit

import "net/http"

// Client is for tests that call a server of package httptest: the end of any such server closes the idle connections of net/http's
// default transport, and a request of a test that runs at the same time may just have taken one.
var Client = &http.Client{Transport: http.DefaultTransport.(*http.Transport).Clone()} //nolint:forcetypeassert // net/http's own
