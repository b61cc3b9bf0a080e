package imds_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"replug/dataplane/imds"
	"replug/directory/vnet"
)

// A connection that is refused stays for half a second, for its answer to arrive.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}

const deadline = 10 * time.Second

// A service is a running server. Its guests call from 127.<port>.<epoch>.9, so
// that the loopback device alone makes many callers.
type service struct {
	*imds.Server
	addr    string
	reports chan vnet.GuestReport
	fail    error // what OnReport returns
	mu      sync.Mutex
	refused map[string]int
}

func serve(t *testing.T) *service {
	t.Helper()
	return serveAt(t, "127.0.0.1:0")
}

// serveAt takes everybody who comes over IPv6 for port 23.
func serveAt(t *testing.T, address string) *service {
	t.Helper()
	s := &service{reports: make(chan vnet.GuestReport, 8), refused: map[string]int{}}
	s.Server = imds.New(imds.Config{
		Identify: func(a netip.AddrPort) (imds.Caller, bool) {
			if a.Addr().Is6() {
				return imds.Caller{Port: 23, Epoch: 7}, true
			}
			b := a.Addr().Unmap().As4()
			return imds.Caller{Port: vnet.PortID(b[1]), Epoch: uint16(b[2])}, b[3] == 9
		},
		OnReport: func(_ context.Context, port vnet.PortID, r vnet.GuestReport) error {
			r.BootID += fmt.Sprintf(" of port %d", port)
			s.reports <- r
			return s.fail
		},
		Refused: func(port vnet.PortID, reason string) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.refused[fmt.Sprintf("%d: %s", port, reason)]++
		},
		Log: slog.New(slog.DiscardHandler),
	})
	ln, err := imds.Listen(t.Context(), "lo", address)
	if err != nil {
		t.Fatal(err)
	}
	s.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return s
}

// count returns how often a refusal was counted.
func (s *service) count(label string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused[label]
}

// guest returns the HTTP client of a port in an epoch.
func guest(t *testing.T, port vnet.PortID, epoch vnet.Epoch) *http.Client {
	return client(t, fmt.Sprintf("127.%d.%d.9", port, epoch.Counter()))
}

func client(t *testing.T, from string) *http.Client {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	tr := &http.Transport{DialContext: d.DialContext}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: deadline}
}

// ask sends a request; edit changes what is not good about it.
func (s *service) ask(c *http.Client, method, path, body string, edit ...func(*http.Request)) (int, string, error) {
	req, err := s.request(method, path, body, edit...)
	if err != nil {
		return 0, "", err
	}
	return readAll(c.Do(req))
}

func (s *service) request(method, path, body string, edit ...func(*http.Request)) (*http.Request, error) {
	req, err := http.NewRequest(method, "http://"+s.addr+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Host = "169.254.169.254"
	req.Header.Set("Metadata", "true")
	for _, f := range edit {
		f(req)
	}
	return req, nil
}

func readAll(resp *http.Response, err error) (int, string, error) {
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// hostname asks for the configuration and returns what it is for, or the code.
func (s *service) hostname(t *testing.T, c *http.Client, query string) string {
	t.Helper()
	code, body, err := s.ask(c, "GET", imds.PathConfig+query, "")
	if err != nil {
		return err.Error()
	}
	if code != 200 {
		return fmt.Sprint(code)
	}
	var d vnet.Document
	if err := json.Unmarshal([]byte(body), &d); err != nil {
		t.Fatal(err)
	}
	return d.Hostname + " " + d.Epoch.String()
}

var (
	before = vnet.NewEpoch(3, 7)
	after  = vnet.NewEpoch(3, 8)
)

func TestConfig(t *testing.T) {
	s := serve(t)
	c := guest(t, 23, before)
	check := func(what, query, want string) {
		t.Helper()
		if got := s.hostname(t, c, query); got != want {
			t.Errorf("%s: got %q, want %q", what, got, want)
		}
	}
	check("nothing published", "", "404")
	doc := &vnet.Document{Epoch: vnet.NewEpoch(3, 5), Hostname: "web-1"}
	s.Publish(23, before, doc, imds.Guest{})
	check("published", "", "web-1 3.7")
	check("newer than what the guest has", "?since=3.6", "web-1 3.7")
	check("nothing newer", "?since=3.7", "204")
	check("bad since", "?since=7", "400")
	check("bad wait", "?wait=61", "400")
	s.Publish(23, vnet.NewEpoch(3, 6), &vnet.Document{Hostname: "late"}, imds.Guest{})
	check("an older epoch is ignored", "", "web-1 3.7")
	s.Withdraw(23)
	check("withdrawn", "", "404")
	s.Publish(23, before, doc, imds.Guest{})
	s.Forget(23)
	check("forgotten", "", "404")
	s.Publish(23, vnet.NewEpoch(0, 7), &vnet.Document{Hostname: "reused"}, imds.Guest{})
	check("the id in another hand", "", "reused 0.7")
	if doc.Epoch != vnet.NewEpoch(3, 5) {
		t.Error("the parent's document was changed")
	}
	if code, body, _ := s.ask(c, "GET", imds.PathRoot, ""); code != 200 || body != "{\"version\":\"v1\"}\n" {
		t.Errorf("root: %d %q", code, body)
	}
}

// TestPoll wakes polls by publishing while they wait, many times over.
func TestPoll(t *testing.T) {
	s := serve(t)
	c := guest(t, 23, before)
	for i := range 15 {
		got := make(chan string, 1)
		go func() { got <- s.hostname(t, c, "?wait=60&since=3.6") }()
		if i%2 == 0 { // these wait already, as a rule; the others find it there
			another(t, s, c)
		}
		s.Publish(23, before, &vnet.Document{Hostname: "web-1"}, imds.Guest{})
		select {
		case h := <-got:
			if h != "web-1 3.7" {
				t.Fatalf("round %d: got %q", i, h)
			}
		case <-time.After(deadline):
			t.Fatalf("round %d: the poll was not woken", i)
		}
		s.Forget(23)
	}
}

// another asks on a connection of its own: the poll was sent before.
func another(t *testing.T, s *service, c *http.Client) {
	t.Helper()
	if code, _, err := s.ask(c, "GET", imds.PathRoot, ""); code != 200 {
		t.Fatalf("got %d, %v", code, err)
	}
}

func TestPollEnds(t *testing.T) {
	s := serve(t)
	s.Publish(23, before, &vnet.Document{Hostname: "web-1"}, imds.Guest{})
	start := time.Now()
	if got := s.hostname(t, guest(t, 23, before), "?since=3.7&wait=1"); got != "204" {
		t.Errorf("got %q, want 204", got)
	}
	if d := time.Since(start); d < time.Second {
		t.Errorf("ended after %s", d)
	}
}

// TestOldEpoch is invariant 9 for metadata, the leak that must not be: a connection that the guest opened
// before the flip never reads the next tenant's document, kept alive or polling.
func TestOldEpoch(t *testing.T) {
	s := serve(t)
	s.Publish(23, before, &vnet.Document{Hostname: "old-tenant"}, imds.Guest{})
	old := guest(t, 23, before)
	if got := s.hostname(t, old, ""); got != "old-tenant 3.7" {
		t.Fatalf("got %q", got)
	}
	polled := make(chan string, 1)
	go func() { polled <- s.hostname(t, old, "?since=3.7&wait=60") }()
	s.Withdraw(23)
	if got := s.hostname(t, guest(t, 23, after), ""); got != "404" {
		t.Errorf("flipped, not published: got %q, want 404", got)
	}
	s.Publish(23, after, &vnet.Document{Hostname: "new-tenant"}, imds.Guest{})
	select {
	case got := <-polled:
		if strings.Contains(got, "new-tenant") {
			t.Errorf("the old poll got %q", got)
		}
	case <-time.After(deadline):
		t.Error("the old poll holds its connection")
	}
	if got := s.hostname(t, old, ""); got != "410" {
		t.Errorf("the old address: got %q, want 410", got)
	}
	if got := s.hostname(t, guest(t, 23, after), ""); got != "new-tenant 3.8" {
		t.Errorf("the new address: got %q", got)
	}
}

func TestPortsAreApart(t *testing.T) {
	s := serve(t)
	s.Publish(23, before, &vnet.Document{Hostname: "web-1"}, imds.Guest{})
	s.Publish(42, before, &vnet.Document{Hostname: "db-1"}, imds.Guest{})
	for port, want := range map[vnet.PortID]string{23: "web-1 3.7", 42: "db-1 3.7", 77: "404"} {
		if got := s.hostname(t, guest(t, port, before), ""); got != want {
			t.Errorf("port %d: got %q, want %q", port, got, want)
		}
	}
	if _, _, err := s.ask(client(t, "127.23.7.8"), "GET", imds.PathConfig, ""); err == nil {
		t.Error("an unknown caller was served")
	}
	if n := s.count("0: unknown caller"); n == 0 {
		t.Error("the unknown caller was not counted")
	}
}

// TestCrowd is invariant 7 for metadata. It fills one port's share of connections and requests: another port is
// served as ever.
func TestCrowd(t *testing.T) {
	s := serve(t)
	s.Publish(42, before, &vnet.Document{Hostname: "db-1"}, imds.Guest{})
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.23.7.9")}}
	for range 16 {
		c, err := d.DialContext(t.Context(), "tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n", imds.PathRoot)
		if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.Contains(line, "200") {
			t.Fatalf("got %q, %v", line, err)
		}
	}
	c, err := d.DialContext(t.Context(), "tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(deadline))
	if n, err := c.Read(make([]byte, 9)); err == nil || errors.Is(err, unix.EAGAIN) {
		t.Errorf("the 17th connection reads %d, %v", n, err)
	}
	if n := s.count("23: too many connections"); n != 1 {
		t.Errorf("counted %d times", n)
	}
	codes := map[int]int{}
	greedy := guest(t, 77, before)
	for range 190 {
		code, _, err := s.ask(greedy, "GET", imds.PathRoot, "")
		if err != nil {
			t.Fatal(err)
		}
		codes[code]++
	}
	if codes[429] == 0 || codes[200] < 120 {
		t.Errorf("codes of a greedy port: %v", codes)
	}
	if got := s.hostname(t, guest(t, 42, before), ""); got != "db-1 3.7" {
		t.Errorf("the other port: got %q", got)
	}
}

func TestReport(t *testing.T) {
	s := serve(t)
	s.Publish(23, before, &vnet.Document{Hostname: "web-1"}, imds.Guest{})
	s.Publish(42, before, &vnet.Document{Tag: vnet.TagPartial}, imds.Guest{})
	for _, c := range []struct {
		name  string
		port  vnet.PortID
		epoch vnet.Epoch // of the connection
		body  string
		want  int
	}{
		{"final", 23, before, `{"epoch":"3.7","kind":"final","ok":true,"boot_id":"b1"}`, 204},
		{"partial", 42, before, `{"epoch":"3.7","kind":"partial","ok":true,"boot_id":"b2"}`, 204},
		// Invariant 11.
		{"partial on a final document", 23, before, `{"epoch":"3.7","kind":"partial","ok":true}`, 409},
		{"final on a partial document", 42, before, `{"epoch":"3.7","kind":"final","ok":true}`, 409},
		{"another epoch", 23, before, `{"epoch":"3.6","kind":"final","ok":true}`, 409},
		{"another epoch's connection", 23, after, `{"epoch":"3.7","kind":"final","ok":true}`, 409},
		{"nothing published yet", 77, before, `{"epoch":"3.7","kind":"final","ok":true}`, 503},
		{"another epoch, nothing published", 77, before, `{"epoch":"3.6","kind":"final","ok":true}`, 409},
		{"no kind", 23, before, `{"epoch":"3.7"}`, 400},
		{"not JSON", 23, before, `epoch=3.7`, 400},
		{"more than one object", 23, before, `{"epoch":"3.7","kind":"final"} {}`, 400},
		{"bad epoch", 23, before, `{"epoch":"7","kind":"final"}`, 400},
		{"empty", 23, before, ``, 400},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, body, err := s.ask(guest(t, c.port, c.epoch), "POST", imds.PathReport, c.body)
			if err != nil || code != c.want {
				t.Fatalf("got %d %s %v, want %d", code, body, err, c.want)
			}
			select {
			case r := <-s.reports:
				want := fmt.Sprintf("b%d of port %d", map[vnet.PortID]int{23: 1, 42: 2}[c.port], c.port)
				if c.want != 204 || r.BootID != want || time.Since(r.At) > deadline {
					t.Errorf("the parent got %+v", r)
				}
			default:
				if c.want == 204 {
					t.Error("the parent got nothing")
				}
			}
		})
	}
	s.fail = errors.New("store down")
	if code, _, _ := s.ask(guest(t, 23, before), "POST", imds.PathReport, `{"epoch":"3.7","kind":"final"}`); code != 503 {
		t.Errorf("parent refuses: got %d, want 503", code)
	}
}

func TestCallerAddr(t *testing.T) {
	epoch := vnet.NewEpoch(3, 0x9876_5432_d0fe)
	for want, a := range map[string]netip.Addr{
		"250.175.16.254":                    imds.CallerAddr(0x2abc, epoch),
		"fd52:5047:0:2abc:3:9876:5432:d0fe": imds.CallerAddr6(0x2abc, epoch),
	} {
		if a.String() != want {
			t.Errorf("got %s, want %s", a, want)
		}
		got, ok := imds.CallerOf(netip.AddrPortFrom(a, 4567))
		if want := (imds.Caller{Port: 0x2abc, Epoch: 0x10fe}); !ok || got != want {
			t.Errorf("%s: got %+v, %v", a, got, ok)
		}
	}
	for _, s := range []string{"10.188.16.254:9", "[fd00::9]:9", "255.255.240.254:9", "240.0.16.254:9",
		"[fd52:5047:0:0:3::9]:9", "[fd52:5047:0:3fff:3::9]:9", "[fd52:5047:1:2abc:3::9]:9"} {
		if c, ok := imds.CallerOf(netip.MustParseAddrPort(s)); ok {
			t.Errorf("%s is %+v", s, c)
		}
	}
	if _, ok := imds.CallerOf(netip.AddrPort{}); ok {
		t.Error("no address is a caller")
	}
}
