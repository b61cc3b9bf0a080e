package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pion/sctp"

	pb "replug/control/controlpb"
	"replug/tests/lab"
)

// Associations of SCTP, between implementations in user space over raw sockets, since a
// kernel may have none: through a service they carry data both ways, stay with their
// backend whatever becomes of its share, and are begun and go on as rules say.
func TestSCTP(t *testing.T) {
	w := shared
	ctx := w.within(t, "no_rule_in", "no_backend", "dead_backend")
	t.Run("IPv4", func(t *testing.T) {
		s := w.signals(ctx, t, "ip4:sctp", "red", "10.20.200.202", func(m *member, _ context.Context, _ *testing.T) string { return m.ip })
		near, mine, other := s.stay(ctx, t)
		s.ruled(ctx, t, near, mine, other)
	})
	t.Run("IPv6", func(t *testing.T) {
		// Detached guests' addresses rest, so the network is of no further use.
		if _, err := pb.NewNetworksClient(w.conn).CreateNetwork(ctx, &pb.CreateNetworkRequest{RequestId: w.id(), Network: &pb.Network{
			Moniker: "ochre", Tenant: tenant, Subnets: []*pb.Subnet{{Prefix: "10.20.0.0/16"}, {Prefix: "fd20:6::/64"}}}}); err != nil {
			t.Fatal(err)
		}
		s := w.signals(ctx, t, "ip6:sctp", "ochre", "fd20:6::ca", (*member).six)
		_, mine, other := s.stay(ctx, t)
		if got := s.associate(ctx, t, "late").says(t, 1); got != other {
			t.Errorf("%s is drained, and a new association has come to %q", mine, got)
		}
	})
}

// sctpPort is both ports of each of the library's associations: it knows no others.
const sctpPort = 5000

// signals is a service of SCTP with its backends one and two and its clients near, far
// and late.
type signals struct {
	*world
	family, network, vip string
	who                  map[string]*member
	at                   map[string]string // addresses
}

func (w *world) signals(ctx context.Context, t *testing.T, family, network, vip string, address func(*member, context.Context, *testing.T) string) *signals {
	t.Helper()
	s := &signals{w, family, network, vip, map[string]*member{}, map[string]string{}}
	for name, host := range map[string]int{"one": 1, "two": 2, "near": 1, "far": 2, "late": 1} {
		s.who[name] = w.guest(ctx, t, host, network, true)
		s.at[name] = address(s.who[name], ctx, t)
	}
	for _, backend := range []string{"one", "two"} {
		for _, client := range []string{"near", "far", "late"} {
			s.who[backend].echoes(t, family, s.at[client], backend)
		}
	}
	w.must(ctx, t, "service", "create", "signals", "--network", network, "--ip", vip, "--protocol", "sctp", "--port", fmt.Sprint(sctpPort),
		"--backend", s.who["one"].port, "--backend", s.who["two"].port)
	t.Cleanup(func() { w.must(context.WithoutCancel(ctx), t, "service", "delete", "signals", "--network", network) })
	return s
}

// associate begins an association of a client with the service; the test ends if it can't.
func (s *signals) associate(ctx context.Context, t *testing.T, client string) *association {
	t.Helper()
	a := s.who[client].associate(ctx, t, s.family, s.vip)
	if a == nil {
		t.FailNow()
	}
	return a
}

// stay drains the backend of one of two associations, which goes on with it.
func (s *signals) stay(ctx context.Context, t *testing.T) (near *association, mine, other string) {
	t.Helper()
	near = s.associate(ctx, t, "near")
	s.associate(ctx, t, "far").says(t, 1)
	mine, other = near.says(t, 1), "one"
	if mine == other {
		other = "two"
	}
	s.must(ctx, t, "service", "backend", "set", "signals", s.who[mine].port, "--network", s.network, "--drain")
	if got := near.says(t, 30); got != mine {
		t.Errorf("%s is drained, and the association has gone on with %q", mine, got)
	}
	return near, mine, other
}

// ruled lets rules refuse the beginning of an association and the middle of another
// one, until they allow it.
func (s *signals) ruled(ctx context.Context, t *testing.T, near *association, mine, other string) {
	t.Helper()
	rule := func(verb, from string) {
		t.Helper()
		s.must(ctx, t, "group", verb, "signals", "--network", s.network, "--rule", fmt.Sprintf("100 a in allow sctp/%d from %s", sctpPort, from))
	}
	rule("create", s.at["near"]+"/32")
	for _, backend := range []string{mine, other} {
		s.must(ctx, t, "port", "group", s.who[backend].port, "signals")
	}
	if got := near.says(t, 1); got != mine {
		t.Errorf("while a rule allows it, %q answers instead of %s", got, mine)
	}
	file := filepath.Join(t.TempDir(), "drops")
	looking := s.looking(ctx, t, "drops --follow > "+file)
	begun := make(chan *association, 1)
	go func() { begun <- s.who["late"].associate(ctx, t, s.family, s.vip) }()
	s.refused(ctx, t, file, "late")
	if len(begun) != 0 {
		t.Error("an association that no rule allows has begun")
	}
	rule("set", s.at["late"]+"/32")
	late := <-begun
	if late == nil {
		t.FailNow()
	}
	if got := late.says(t, 1); got != other {
		t.Errorf("%s is drained, and a new association has come to %q", mine, got)
	}
	near.sends(t)
	s.refused(ctx, t, file, "near")
	rule("set", "any")
	if got := near.hears(t); got != mine {
		t.Errorf("once a rule allows it again, %q answers instead of %s", got, mine)
	}
	if err := looking.Stop(ctx); err != nil {
		t.Error(err)
	}
	for _, backend := range []string{mine, other} {
		s.must(ctx, t, "port", "group", s.who[backend].port, "--none")
	}
	s.must(ctx, t, "group", "delete", "signals", "--network", s.network)
}

// refused waits until an operator sees that packets of a client are refused.
func (s *signals) refused(ctx context.Context, t *testing.T, drops, client string) {
	t.Helper()
	want := fmt.Sprintf("sctp %s:%d > ", s.at[client], sctpPort)
	if err := lab.Until(ctx, "no_rule_in of "+client, func() error {
		b, err := os.ReadFile(drops)
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, want) && strings.Contains(line, "no_rule_in") {
				return nil
			}
		}
		return errors.Join(err, fmt.Errorf("no line with %q in:\n%s", want, b))
	}); err != nil {
		t.Error(err)
	}
}

// A rawPath carries the packets of one protocol between a guest and one address.
type rawPath struct{ *net.IPConn }

// Read returns a packet without its IP header: for IPv4, [net.IPConn.Read] keeps it.
func (p rawPath) Read(b []byte) (int, error) {
	n, _, err := p.ReadFromIP(b)
	return n, err
}

// path opens a rawPath from a guest.
func (m *member) path(family, to string) (p rawPath, err error) {
	err = m.Do(func() error {
		c, err := net.Dial(family, to)
		if err == nil {
			p.IPConn = c.(*net.IPConn)
		}
		return err
	})
	return p, err
}

// echoes makes a guest return what a client says to it in an association, behind a name.
func (m *member) echoes(t *testing.T, family, client, name string) {
	t.Helper()
	p, err := m.path(family, client)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() { p.Close(); <-ended })
	go func() {
		defer close(ended)
		a, err := sctp.Server(sctp.Config{NetConn: p, RTOMax: rtoMax})
		if err != nil {
			return // nobody came
		}
		defer a.Close()
		s, err := a.AcceptStream()
		b := make([]byte, 1<<16)
		for err == nil {
			var n int
			if n, err = s.Read(b); err == nil {
				_, err = s.WriteSCTP(append([]byte(name+": "), b[:n]...), sctp.PayloadTypeWebRTCBinary)
			}
		}
	}()
}

// rtoMax is the longest that a packet is waited for before it is sent again, in
// milliseconds: the library's is a minute.
const rtoMax = 1000

// An association is a client's.
type association struct {
	stream *sctp.Stream
	random *rand.ChaCha8
	sent   []byte
}

// associate begins an association, which ends with the test; nil after a failure. It may
// be called in any goroutine.
func (m *member) associate(ctx context.Context, t *testing.T, family, to string) *association {
	var a *sctp.Association
	for a == nil {
		p, err := m.path(family, to)
		if err != nil {
			t.Error(err)
			return nil
		}
		if a, err = sctp.ClientContext(ctx, sctp.Config{NetConn: p, RTOMax: rtoMax}); err != nil {
			p.Close()
			if ctx.Err() != nil {
				t.Errorf("%s begins no association with %s: %v", m.port, to, err)
				return nil
			} // else its patience has ended, before ours
		}
	}
	t.Cleanup(func() { a.Close() })
	s, err := a.OpenStream(3, sctp.PayloadTypeWebRTCBinary)
	if err != nil {
		t.Error(err)
		return nil
	}
	if end, ok := ctx.Deadline(); ok {
		_ = s.SetReadDeadline(end) // a goroutine of the library, as long as there is a deadline
		t.Cleanup(func() { _ = s.SetReadDeadline(time.Time{}) })
	}
	return &association{stream: s, random: rand.NewChaCha8([32]byte{7, 9, 11})}
}

// sends sends a message of many packets.
func (a *association) sends(t *testing.T) {
	t.Helper()
	a.sent = make([]byte, 40009)
	_, _ = a.random.Read(a.sent)
	if _, err := a.stream.WriteSCTP(a.sent, sctp.PayloadTypeWebRTCBinary); err != nil {
		t.Fatal(err)
	}
}

// hears returns who has answered what was sent.
func (a *association) hears(t *testing.T) string {
	t.Helper()
	b := make([]byte, 1<<16)
	n, err := a.stream.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	name, rest, _ := bytes.Cut(b[:n], []byte(": "))
	if !bytes.Equal(rest, a.sent) {
		t.Fatalf("%d bytes come back that aren't the %d that were sent", len(rest), len(a.sent))
	}
	return string(name)
}

// says sends messages and returns who has answered them all.
func (a *association) says(t *testing.T, messages int) (name string) {
	t.Helper()
	for i := range messages {
		a.sends(t)
		if got := a.hears(t); i > 0 && got != name {
			t.Errorf("message %d is answered by %s, those before by %s", i, got, name)
		} else {
			name = got
		}
	}
	return name
}
