package guest

import (
	"bufio"
	"errors"
	"net"
	"strings"
	"testing"
	"time"
)

// Whatever stands at 169.254.169.254, the agent takes a whole answer or none.
func TestReadAnswer(t *testing.T) {
	for _, c := range []struct {
		name, answer string
		status       int
		body         string
		want         error
	}{
		{"with length", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", 200, "abc", nil},
		{"up to the end", "HTTP/1.0 404 Not Found\r\nConnection: close\r\n\r\nnope", 404, "nope", nil},
		{"without a reason", "HTTP/1.1 204\r\n\r\n", 204, "", nil},
		{"nothing", "", 0, "", errStale},
		{"half a status", "HTTP/1.1 20", 0, "", errMalformed},
		{"half a header", "HTTP/1.1 200 OK\r\nContent-Le", 0, "", errMalformed},
		{"half a body", "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nabc", 0, "", errStale},
		{"more than said", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc", 0, "", errStale},
		{"chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 0, "", errMalformed},
		{"another protocol", "SSH-2.0-OpenSSH_9.2\r\n\r\n", 0, "", errMalformed},
		{"interim status", "HTTP/1.1 100 Continue\r\n\r\n", 0, "", errMalformed},
		{"status that is none", "HTTP/1.1 2x0 OK\r\n\r\n", 0, "", errMalformed},
		{"header that is none", "HTTP/1.1 200 OK\r\n: x\r\nno colon\r\n\r\n", 0, "", errMalformed},
	} {
		status, body, err := readAnswer(bufio.NewReader(strings.NewReader(c.answer)))
		if status != c.status || string(body) != c.body || !errors.Is(err, c.want) {
			t.Errorf("%s: got %d, %q, %v, want %d, %q, %v", c.name, status, body, err, c.status, c.body, c.want)
		}
	}
}

// Where the host's agent is away, the connection is refused by the host: the address
// is good, and the lease is not to be renewed for it.
func TestHostWithoutAgent(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	_, err = newIMDS("http://"+l.Addr().String(), time.Second).next(t.Context(), 0)
	if errors.Is(err, errStale) || !errors.Is(err, errEmpty) {
		t.Errorf("got %v", err)
	}
}

func TestIMDSAddress(t *testing.T) {
	for url, want := range map[string]string{
		"http://169.254.169.254":      "169.254.169.254:80",
		"http://169.254.169.254:8017": "169.254.169.254:8017",
		"http://[fd00:ec2::254]":      "[fd00:ec2::254]:80",
		"http://[fd00:ec2::254]:8017": "[fd00:ec2::254]:8017",
	} {
		if got := newIMDS(url, 0).addr; got != want {
			t.Errorf("%s: got %s, want %s", url, got, want)
		}
	}
}
