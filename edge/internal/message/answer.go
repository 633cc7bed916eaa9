package message

import (
	"errors"
	"fmt"
	"io"
	"net/http"

	"google.golang.org/protobuf/proto"

	"github.com/slimfaas/slimfaas/shared/wire"
)

// stored reads an answer for its caller. What cannot be kept whole is kept without its body, and says why.
func stored(resp *http.Response, share *Share) *wire.StoredAnswer {
	s := &wire.StoredAnswer{Status: uint32(resp.StatusCode), Headers: Headers(resp.Header)}
	switch body, err := answerBody(resp, share); {
	case errors.Is(err, ErrTooLarge):
		s.Omitted = "it was larger than is kept (1 MiB)"
	case errors.Is(err, ErrFull):
		s.Omitted = "the edge that took it had no memory left for answers at that moment"
	case err != nil:
		s.Omitted = "it broke off"
	default:
		s.Body = body
	}
	if s.Omitted == "" && proto.Size(s) > wire.MaxPayload {
		s.Body, s.Omitted = nil, "with its headers it was larger than is kept"
	}
	return s
}

func answerBody(resp *http.Response, share *Share) ([]byte, error) {
	if resp.ContentLength > wire.MaxAnswerBody && resp.Request.Method != http.MethodHead {
		return nil, ErrTooLarge
	}
	var body []byte
	for {
		if len(body) == cap(body) {
			if len(body) > wire.MaxAnswerBody {
				return nil, ErrTooLarge
			}
			step := min(max(resp.ContentLength, readStep), wire.MaxAnswerBody-int64(len(body))) + 1
			if err := share.Take(step); err != nil {
				return nil, err
			}
			body = append(make([]byte, 0, int64(len(body))+step), body...)
		}
		n, err := resp.Body.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case len(body) > wire.MaxAnswerBody:
			return nil, ErrTooLarge
		case errors.Is(err, io.EOF):
			return body, nil
		case err != nil:
			return nil, fmt.Errorf("reading the answer: %w", err)
		}
	}
}
