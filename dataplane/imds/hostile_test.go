package imds_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"replug/dataplane/imds"
	"replug/directory/vnet"
)

// TestHostile is invariant 12 for HTTP: each is refused by name, and the service
// goes on.
func TestHostile(t *testing.T) {
	s := serve(t)
	s.Publish(23, before, &vnet.Document{Hostname: "secret"}, imds.Guest{})
	header := func(k, v string) func(*http.Request) { return func(r *http.Request) { r.Header.Set(k, v) } }
	host := func(h string) func(*http.Request) { return func(r *http.Request) { r.Host = h } }
	none := func(*http.Request) {}
	unsized := func(r *http.Request) { r.ContentLength = -1 }
	big := strings.Repeat("x", 10<<20)
	for _, c := range []struct {
		name, method, path, body string
		edit                     func(*http.Request)
		code                     int
		reason                   string
	}{
		{"good", "GET", imds.PathConfig, "", none, 200, ""},
		{"good, with the port", "GET", imds.PathConfig, "", host("169.254.169.254:80"), 200, ""},
		{"header missing", "GET", imds.PathConfig, "", func(r *http.Request) { r.Header.Del("Metadata") }, 400, "no metadata header"},
		{"header says something else", "GET", imds.PathConfig, "", header("Metadata", "false"), 400, "no metadata header"},
		{"X-Forwarded-For", "GET", imds.PathConfig, "", header("X-Forwarded-For", "10.9.8.7"), 400, "forwarded request"},
		{"X-Forwarded-For, empty", "GET", imds.PathConfig, "", header("X-Forwarded-For", ""), 400, "forwarded request"},
		{"Forwarded", "GET", imds.PathConfig, "", header("Forwarded", "for=10.9.8.7"), 400, "forwarded request"},
		{"foreign host", "GET", imds.PathConfig, "", host("metadata.evil.example"), 400, "foreign host"},
		{"foreign port", "GET", imds.PathConfig, "", host("169.254.169.254:8080"), 400, "foreign host"},
		{"unknown path", "GET", "/computeMetadata/v1/", "", none, 404, "unknown path"},
		{"path that climbs", "GET", "/replug/v1/x/../config", "", none, 404, "unknown path"},
		{"POST to config", "POST", imds.PathConfig, "{}", none, 405, "wrong method"},
		{"GET of report", "GET", imds.PathReport, "", none, 405, "wrong method"},
		{"10 MB body", "POST", imds.PathReport, big, none, 413, "body too large"},
		{"10 MB body of unknown size", "POST", imds.PathReport, big, unsized, 413, "body too large"},
		{"10 MB body where none belongs", "GET", imds.PathConfig, big, none, 413, "body too large"},
		{"10 MB body of unknown size where none belongs", "GET", imds.PathConfig, big, unsized, 413, "body too large"},
		{"10 MB body of unknown size for nobody", "PUT", "/nowhere", big, unsized, 413, "body too large"},
		{"body where none belongs", "GET", imds.PathConfig, "{}", unsized, 200, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			req, err := s.request(c.method, c.path, c.body, c.edit)
			if err != nil {
				t.Fatal(err)
			}
			conn := dial(t, s, fmt.Sprintf("127.23.%d.9", before.Counter()))
			// The answer may come before the body has gone, and the connection end: a
			// client of net/http says then that it can't write.
			go func() { _ = req.Write(conn) }()
			code, body, err := readAll(http.ReadResponse(bufio.NewReader(conn), req))
			if err != nil || code != c.code {
				t.Fatalf("got %d %s %v, want %d", code, body, err, c.code)
			}
			if c.reason == "" {
				return
			}
			var answer struct{ Error, Next string }
			if err := json.Unmarshal([]byte(body), &answer); err != nil || answer.Error != c.reason || answer.Next == "" {
				t.Errorf("body %q, %v; want the reason %q and what next", body, err, c.reason)
			}
			if s.count("23: "+c.reason) == 0 {
				t.Errorf("%q was not counted: %v", c.reason, s.refused)
			}
		})
	}
}

// TestRaw sends what no HTTP library would.
func TestRaw(t *testing.T) {
	s := serve(t)
	for _, c := range []struct{ name, send, want string }{
		{"not HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "HTTP/1.1 400 "},
		{"no host", "GET /replug/v1/ HTTP/1.0\r\nMetadata: true\r\n\r\n", "HTTP/1.0 400 "},
		{"host in the line", "GET http://evil.example/replug/v1/ HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n", "HTTP/1.1 400 "},
		{"two hosts", "GET /replug/v1/ HTTP/1.1\r\nHost: 169.254.169.254\r\nHost: evil.example\r\nMetadata: true\r\n\r\n", "HTTP/1.1 400 "},
		{"headers over 8 KiB", "GET /replug/v1/ HTTP/1.1\r\nHost: 169.254.169.254\r\nX: " + strings.Repeat("y", 9000) + "\r\n\r\n", "HTTP/1.1 431 "},
		{"headers just below", "GET /replug/v1/ HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\nX: " + strings.Repeat("y", 7900) + "\r\n\r\n", "HTTP/1.1 200 "},
		{"OPTIONS of all", "OPTIONS * HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n", "HTTP/1.1 404 "},
		{"OPTIONS of a foreign host", "OPTIONS * HTTP/1.1\r\nHost: evil.example\r\n\r\n", "HTTP/1.1 400 "},
		{"OPTIONS, forwarded", "OPTIONS * HTTP/1.1\r\nHost: 169.254.169.254\r\nX-Forwarded-For: 10.9.8.7\r\n\r\n", "HTTP/1.1 400 "},
		{"body of 10 MB, not a byte of it yet", "POST /replug/v1/report HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\nContent-Length: 10485760\r\n\r\n", "HTTP/1.1 413 "},
		{"chunked body of 12 KiB for nothing", "GET /replug/v1/ HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\nTransfer-Encoding: chunked\r\n\r\n3000\r\n" +
			strings.Repeat("z", 0x3000) + "\r\n0\r\n\r\n", "HTTP/1.1 413 "},
		{"chunk that lies", "GET /replug/v1/ HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "HTTP/1.1 400 "},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := dial(t, s, "127.23.7.9")
			fmt.Fprint(conn, c.send)
			line, err := bufio.NewReader(conn).ReadString('\n')
			if err != nil || !strings.HasPrefix(line, c.want) {
				t.Errorf("got %q, %v; want %q", line, err, c.want)
			}
		})
	}
	if s.count("23: unknown path") != 1 || s.count("23: foreign host") != 3 || s.count("23: forwarded request") != 1 {
		t.Errorf("counted %v", s.refused)
	}
}

// TestSlow holds connections open without ever finishing a request: they end by
// themselves, in the headers as in the body.
func TestSlow(t *testing.T) {
	s := serve(t)
	head := dial(t, s, "127.23.7.9")
	fmt.Fprint(head, "GET /replug/v1/ HTTP/1.1\r\nHost: 169.254")
	body := dial(t, s, "127.23.7.9")
	fmt.Fprint(body, "POST /replug/v1/report HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\nContent-Length: 99\r\n\r\n{")
	for name, c := range map[string]net.Conn{"headers": head, "body": body} {
		b, err := io.ReadAll(c)
		if err != nil {
			t.Errorf("slow %s: %q, %v", name, b, err)
		}
	}
	if s.count("23: body cut off") != 1 {
		t.Errorf("counted %v", s.refused)
	}
}

// TestHopLimit reads the hop limit of the answer as the guest gets it.
func TestHopLimit(t *testing.T) {
	for _, c := range []struct {
		name, at, from           string
		family, level, ask, told int
	}{
		{"IPv4", "127.0.0.1:0", "127.23.7.9", unix.AF_INET, unix.IPPROTO_IP, unix.IP_RECVTTL, unix.IP_TTL},
		{"IPv6", "[::1]:0", "::1", unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, unix.IPV6_HOPLIMIT},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := serveAt(t, c.at)
			conn := dial(t, s, c.from)
			fd, err := unix.Socket(c.family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
			if err != nil {
				t.Fatalf("raw socket: %v (needs root)", err)
			}
			defer unix.Close(fd)
			tv := unix.NsecToTimeval(int64(deadline))
			if err := errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv), unix.SetsockoptInt(fd, c.level, c.ask, 1)); err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(conn, "GET /replug/v1/ HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n")
			server := uint16(conn.RemoteAddr().(*net.TCPAddr).Port)
			for b, oob := make([]byte, 4096), make([]byte, 256); ; {
				n, m, _, _, err := unix.Recvmsg(fd, b, oob, 0)
				if err != nil {
					t.Fatal(err)
				}
				tcp := b[:n]
				if c.family == unix.AF_INET { // of IPv6 a raw socket gets no header
					tcp = tcp[int(b[0]&15)*4:]
				}
				if binary.BigEndian.Uint16(tcp) != server || !bytes.Contains(tcp, []byte("HTTP/1.1 200")) {
					continue
				}
				hops, err := unix.ParseSocketControlMessage(oob[:m])
				if err != nil || len(hops) != 1 || hops[0].Header.Type != int32(c.told) || binary.NativeEndian.Uint32(hops[0].Data) != 1 {
					t.Errorf("hop limit %+v, %v, want 1", hops, err)
				}
				return
			}
		})
	}
}

func dial(t *testing.T, s *service, from string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.DialContext(t.Context(), "tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(2 * deadline))
	return c
}
