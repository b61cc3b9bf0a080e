package imds

import (
	"net/http"

	"replug/directory/vnet"
)

// Unlimited lets every port ask as often as it likes, from now on.
func (s *Server) Unlimited() { s.perSec, s.burst = 1e9, 1e9 }

// ParseHealth reads a health report; for fuzzing.
func ParseHealth(body []byte) (ready bool, incarnation uint64, why string, err error) {
	h, err := parseHealth(body)
	if err != nil {
		return false, 0, "", err
	}
	return h.ready, uint64(h.incarnation), h.why, nil
}

// Handler answers requests without a listener.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serve) }

// UserData is what a guest of a cloud with user data alone is handed.
func UserData(d *vnet.Document) []byte {
	return joined(d.UserData, cloudConfig(d, true), wakeConfig(d))
}
