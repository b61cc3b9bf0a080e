package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	pb "replug/control/controlpb"
	"replug/tests/cluster"
	"replug/tests/lab"
)

// A backend that doesn't answer its host's check gets no more connections, and gets
// them again when it answers: whatever its rules say, and wherever the client is. It
// is asked in the service's family, and listens in no other.
func TestServiceIsChecked(t *testing.T) {
	t.Run("IPv4", func(t *testing.T) {
		shared.checked(t, "tcp4", "red", "10.20.200.201", func(m *member, _ context.Context, _ *testing.T) string { return m.ip })
	})
	t.Run("IPv6", func(t *testing.T) {
		ctx := shared.within(t)
		// Detached guests' addresses rest, so the network is of no further use.
		if _, err := pb.NewNetworksClient(shared.conn).CreateNetwork(ctx, &pb.CreateNetworkRequest{RequestId: shared.id(), Network: &pb.Network{
			Moniker: "amber", Tenant: tenant, Subnets: []*pb.Subnet{{Prefix: "10.20.0.0/16"}, {Prefix: "fd20:8::/64"}}}}); err != nil {
			t.Fatal(err)
		}
		shared.checked(t, "tcp6", "amber", "fd20:8::c9", (*member).six)
	})
}

// checked is the test in one family.
func (w *world) checked(t *testing.T, family, network, vip string, address func(*member, context.Context, *testing.T) string) {
	ctx := w.within(t, "no_rule_in", "no_backend", "dead_backend")
	one, two, client := w.guest(ctx, t, 1, network, true), w.guest(ctx, t, 2, network, true), w.guest(ctx, t, 1, network, true)
	from := netip.MustParseAddr(address(client, ctx, t))
	w.must(ctx, t, "group", "create", "quiet", "--network", network, "--rule", fmt.Sprintf("100 a in allow tcp/8443 from %s/%d", from, from.BitLen()))
	for _, m := range []*member{one, two} {
		address(m, ctx, t)
		w.must(ctx, t, "port", "group", m.port, "quiet")
	}
	defer one.opens(t, family, 8443)()
	shut := two.opens(t, family, 8443)
	w.must(ctx, t, "service", "create", "checked", "--network", network, "--ip", vip, "--port", "443",
		"--backend", one.port+":8443", "--backend", two.port+":8443", "--check", "--check-interval", "200ms", "--check-fall", "2", "--check-rise", "2")
	dead := func(want string) {
		t.Helper()
		if err := lab.Until(ctx, "dead: "+want, func() error {
			s, err := pb.NewServicesClient(w.conn).GetService(ctx, &pb.GetServiceRequest{Tenant: tenant, Network: network, Name: "checked"})
			if err != nil {
				return err
			}
			var dead []string
			for _, b := range s.Backends {
				if b.Dead {
					dead = append(dead, strings.TrimPrefix(b.Member, tenant+"."))
				}
			}
			if got := strings.Join(dead, " "); got != want {
				return fmt.Errorf("dead are %q", got)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	at := net.JoinHostPort(vip, "443")
	both := func() {
		t.Helper()
		client.eventually(ctx, t, "the first", at, one.port)
		client.eventually(ctx, t, "the second", at, two.port)
	}
	dead("")
	both()
	shut()
	dead(two.port)
	// The client's host hears of it a moment later, and a busy one may miss an answer
	// of the backend that lives: what counts is that nobody is led to the dead one then.
	if err := lab.Until(ctx, "one backend alone", func() error {
		for n := range 20 {
			if got := client.hears(at); got != one.port {
				return fmt.Errorf("connection %d of 20 hears %q, one of two backends is dead", n+1, got)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	shut = two.opens(t, family, 8443)
	defer shut()
	dead("")
	both()
	w.must(ctx, t, "service", "delete", "checked", "--network", network)
	for _, m := range []*member{one, two} {
		w.must(ctx, t, "port", "group", m.port, "--none")
	}
	w.must(ctx, t, "group", "delete", "quiet", "--network", network)
}

// opens makes a guest tell its name to whoever connects, until the returned function
// is called.
func (m *member) opens(t *testing.T, family string, port int) func() {
	t.Helper()
	var l net.Listener
	if err := m.Do(func() (err error) {
		l, err = net.Listen(family, fmt.Sprintf(":%d", port))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, m.port)
			c.Close()
		}
	}()
	return func() { l.Close() }
}

// Limits bind a live port in either direction, by packets and by bits, from one
// frame to the next, and are gone when they are taken away.
func TestLimits(t *testing.T) {
	w := shared
	ctx := w.within(t, "rate_from", "rate_to")
	web, near, far := w.guest(ctx, t, 1, "red", true), w.guest(ctx, t, 1, "red", true), w.guest(ctx, t, 2, "red", true)
	drops := func(reason string) float64 { return w.dropped(ctx, t, reason) }
	// flood sends large datagrams to a closed port from all that may: a second's worth
	// and more of any limit here.
	flood := func(from *member, to string) {
		t.Helper()
		if err := from.Do(func() error {
			c, err := net.Dial("udp", to+":9")
			if err != nil {
				return err
			}
			defer c.Close()
			for range 3000 {
				if _, err := c.Write(make([]byte, 1000)); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		what, reason string
		args         []string
		from         *member
		to           string
	}{
		{"packets out", "rate_from", []string{"--from-packets", "50"}, web, far.ip},
		{"bits out", "rate_from", []string{"--from", "1M"}, web, near.ip},
		{"packets in, same host", "rate_to", []string{"--to-packets", "50"}, near, web.ip},
		{"bits in, other host", "rate_to", []string{"--to", "1M"}, far, web.ip},
	} {
		was := drops(c.reason)
		flood(c.from, c.to)
		if now := drops(c.reason); now != was {
			t.Errorf("%s: %v frames were over a limit that isn't there", c.what, now-was)
		}
		w.must(ctx, t, append([]string{"port", "limit", web.port}, c.args...)...)
		if err := lab.Until(ctx, c.what, func() error {
			flood(c.from, c.to)
			if drops(c.reason) == was {
				return errors.New("nothing is over the limit")
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		if err := cluster.Ping(ctx, far.Node, netip.MustParseAddr(web.ip)); err != nil {
			t.Errorf("%s: nothing passes at all: %v", c.what, err)
		}
		w.must(ctx, t, "port", "limit", web.port, "--none")
		if err := lab.Until(ctx, c.what+", taken away", func() error {
			was := drops(c.reason)
			flood(c.from, c.to)
			if now := drops(c.reason); now != was {
				return fmt.Errorf("%v frames are over it", now-was)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
}
