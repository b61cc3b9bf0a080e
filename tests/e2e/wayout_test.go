package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	pb "replug/control/controlpb"
	"replug/tests/lab"
)

// An exit is what a network's routes lead to: a gateway VM on another host, or a
// machine without Replug that is a VTEP. It has addresses of both families in the
// network, and some that are beyond it.
type exit struct {
	*lab.Node
	name    string
	hops    []string // addresses in the network, IPv4 and IPv6
	beyond  []string
	summary string // of a trace that goes there
}

// A route of a live network leads to a gateway VM or to a VTEP, whose answers from
// beyond it pass, in both families: the network's way out. Without the route nothing
// does.
func TestWayOut(t *testing.T) {
	w := shared
	ctx := w.within(t, "no_route")
	vni := w.exits(ctx, t)
	web, gw := w.guest(ctx, t, 1, "exits", true), w.guest(ctx, t, 2, "exits", true)
	web.six(ctx, t)
	vm := exit{gw.Node, "VM", []string{gw.ip, gw.six(ctx, t)}, []string{"198.51.100.9", "2001:db8:51::9"}, "delivered to " + tenant + "." + gw.port}
	if err := vm.reaches(ctx, "eth0"); err != nil {
		t.Fatal(err)
	}
	w.leads(ctx, t, web, vm, "198.51.100.0/24", "0.0.0.0/0", "2001:db8::/32", "::/0")
	w.leads(ctx, t, web, w.vtep(ctx, t, vni, web), "0.0.0.0/0", "::/0")
}

// exits makes the network of that name, and returns its VNI.
func (w *world) exits(ctx context.Context, t *testing.T) uint32 {
	t.Helper()
	n, err := pb.NewNetworksClient(w.conn).CreateNetwork(ctx, &pb.CreateNetworkRequest{RequestId: w.id(), Network: &pb.Network{
		Moniker: "exits", Tenant: tenant, Subnets: []*pb.Subnet{{Prefix: "10.20.0.0/16"}, {Prefix: "fd20:9::/64"}}}})
	if err != nil {
		t.Fatal(err)
	}
	return n.Vni
}

// leads adds routes to an exit, one after the other, and sends through each what it is
// for: bytes pass both ways, and a trace says where to. When it is gone nothing passes.
func (w *world) leads(ctx context.Context, t *testing.T, web *member, e exit, prefixes ...string) {
	t.Helper()
	for _, prefix := range prefixes {
		family := 0
		if netip.MustParsePrefix(prefix).Addr().Is6() {
			family = 1
		}
		beyond := e.beyond[family]
		w.must(ctx, t, "network", "route", "add", "exits", prefix, e.hops[family])
		if err := lab.Until(ctx, "the route "+prefix, func() error {
			got, code := w.trace(ctx, t, "--from", web.port, "--to", beyond, "--from-ip", web.of(ctx, t, family), "tcp/9731")
			if code != 0 || !strings.Contains(got.Summary, e.summary) {
				return fmt.Errorf("a trace to %s: %s; want %q", beyond, got.Summary, e.summary)
			}
			return nil
		}); err != nil {
			t.Fatalf("to a %s: %v", e.name, err)
		}
		talks(ctx, t, web.Node, e.Node, beyond)
		w.must(ctx, t, "network", "route", "remove", "exits", prefix)
		w.noWay(ctx, t, web, beyond)
	}
}

// noWay waits until there is no route to an address, and fails the test if somebody
// answers there all the same.
func (w *world) noWay(ctx context.Context, t *testing.T, web *member, beyond string) {
	t.Helper()
	family := 0
	if netip.MustParseAddr(beyond).Is6() {
		family = 1
	}
	if err := lab.Until(ctx, "no route to "+beyond, func() error {
		if got, _ := w.trace(ctx, t, "--from", web.port, "--to", beyond, "--from-ip", web.of(ctx, t, family), "tcp/9731"); got.Hops[0].Drop != "no_route" {
			return errors.New(got.Summary)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	// Whoever is there would refuse this at once.
	var timeout net.Error
	err := web.Do(func() error {
		_, err := net.DialTimeout("tcp", net.JoinHostPort(beyond, "9731"), 300*time.Millisecond)
		return err
	})
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("without a route %s answers: %v", beyond, err)
	}
}

// of returns a port's address of a family: 0 is IPv4.
func (m *member) of(ctx context.Context, t *testing.T, family int) string {
	if family == 0 {
		return m.ip
	}
	return m.v6(ctx, t)
}

// vtep makes the server's machine a VTEP of a network, as docs/networks.md says: a
// VXLAN device of its kernel, and a static neighbour for a guest.
func (w *world) vtep(ctx context.Context, t *testing.T, vni uint32, web *member) exit {
	t.Helper()
	p, err := pb.NewPortsClient(w.conn).GetPort(ctx, &pb.GetPortRequest{Tenant: tenant, Name: web.port})
	if err != nil {
		t.Fatal(err)
	}
	const mac = "02:17:34:56:78:9a"
	e := exit{w.Lab.Server(), "VTEP", []string{w.ip(), "fd20:9::4444"}, []string{"203.0.113.9", "2001:db8:203::9"}, "a VTEP"}
	pa := w.Lab.ServerAddr().String()
	for _, line := range []string{
		fmt.Sprintf("ip link add edge address %s mtu %d type vxlan id %d local %s dstport 4789 nolearning udp6zerocsumrx", mac, w.Lab.GuestMTU(), vni, pa),
		"sysctl -qw net.ipv6.conf.edge.disable_ipv6=0 net.ipv6.conf.edge.accept_ra=0", "ip link set edge up",
		"ip addr add " + e.hops[0] + "/16 dev edge", "ip addr add " + e.hops[1] + "/64 dev edge nodad",
		"bridge fdb append " + p.Mac + " dev edge dst " + p.Pa,
		"ip neigh add " + web.ip + " lladdr " + p.Mac + " dev edge", "ip neigh add " + web.v6(ctx, t) + " lladdr " + p.Mac + " dev edge",
	} {
		if _, err := e.Run(ctx, strings.Fields(line)...); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.reaches(ctx, "edge"); err != nil {
		t.Fatal(err)
	}
	for family, name := range []string{"edge-4", "edge-6"} {
		w.must(ctx, t, "vtep", "add", name, "--network", "exits", "--ip", e.hops[family], "--pa", pa, "--mac", mac)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		for _, name := range []string{"edge-4", "edge-6"} {
			w.must(ctx, t, "vtep", "remove", name, "--network", "exits")
		}
		if _, err := e.Run(ctx, "ip", "link", "del", "edge"); err != nil {
			t.Error(err)
		}
	})
	return e
}

// reaches gives an exit what is beyond it.
func (e exit) reaches(ctx context.Context, dev string) error {
	_, err4 := e.Run(ctx, "ip", "addr", "add", e.beyond[0]+"/32", "dev", dev)
	_, err6 := e.Run(ctx, "ip", "addr", "add", e.beyond[1]+"/128", "dev", dev, "nodad")
	return errors.Join(err4, err6)
}
