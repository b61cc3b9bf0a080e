package imds

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"time"
)

// tokens are session tokens of the EC2 dialect. Nothing is kept of them: one says
// until when it is good, and is signed for its caller. So it ends with the epoch,
// and with the agent; a guest that is told 401 takes a new one.
type tokens struct{ key []byte }

func newTokens() tokens {
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // never fails (crypto/rand, Go 1.24)
	return tokens{key}
}

// give makes a token.
func (t tokens) give(who Caller, until time.Time) string {
	b := binary.BigEndian.AppendUint64(nil, uint64(until.Unix()))
	return base64.RawURLEncoding.EncodeToString(append(b, t.sign(who, b)...))
}

// good reports whether a token is the caller's and not over.
func (t tokens) good(who Caller, token string, now time.Time) bool {
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(b) != 8+sha256.Size {
		return false
	}
	return hmac.Equal(b[8:], t.sign(who, b[:8])) && now.Unix() < int64(binary.BigEndian.Uint64(b))
}

func (t tokens) sign(who Caller, until []byte) []byte {
	m := hmac.New(sha256.New, t.key)
	m.Write(binary.BigEndian.AppendUint64(nil, uint64(who.Port)))
	m.Write(binary.BigEndian.AppendUint64(nil, uint64(who.Epoch)))
	m.Write(until)
	return m.Sum(nil)
}
