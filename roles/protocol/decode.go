package protocol

import (
	"errors"
	"net/http"

	"nixfleet/pki"
)

// DecodeStrict reads a request body into v. When it cannot, status is the
// answer: 400 for what is no JSON, 422 for JSON of another shape and for
// repeated keys, 413 for what is too large.
func DecodeStrict(body []byte, v any) (status int, err error) {
	err = pki.Decode(body, v)
	switch {
	case err == nil:
		return http.StatusOK, nil
	case errors.Is(err, pki.ErrSyntax), errors.Is(err, pki.ErrEncoding), errors.Is(err, pki.ErrDepth):
		return http.StatusBadRequest, err
	case errors.Is(err, pki.ErrSize):
		return http.StatusRequestEntityTooLarge, err
	}
	return http.StatusUnprocessableEntity, err
}
