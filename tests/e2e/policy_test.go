package e2e_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	pb "replug/control/controlpb"
	"replug/tests/cluster"
	"replug/tests/lab"
)

// silent fails the test if an answer comes from an address within a moment.
func silent(ctx context.Context, t *testing.T, what string, from *lab.Node, ip string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if err := cluster.Ping(ctx, from, netip.MustParseAddr(ip)); err == nil {
		t.Errorf("%s: %s reaches %s", what, from.Name, ip)
	}
}

// greets makes a guest tell its name to whoever connects, until the test ends.
func (m *member) greets(t *testing.T, port int) {
	t.Helper()
	t.Cleanup(m.opens(t, "tcp", port))
}

// hears returns who answers at an address at once, or "": for what is not to come
// through, and for what is asked again.
func (m *member) hears(addr string) (name string) {
	_ = m.Do(func() error {
		c, err := net.DialTimeout("tcp", addr, 500*time.Millisecond)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Second))
		name, err = bufio.NewReader(c).ReadString('\n')
		name = strings.TrimSpace(name)
		return err
	})
	return name
}

// answered returns who answers at an address, to one of the guest's own or, if from is
// "", to any. It has all of ctx's time: for what must come through. Frames that were
// refused are sent again, so that they were not has to be looked for where they are counted.
func (m *member) answered(ctx context.Context, from, addr string) (name string, err error) {
	d := net.Dialer{}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	err = m.Do(func() error {
		c, err := d.DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		defer c.Close()
		if end, ok := ctx.Deadline(); ok {
			_ = c.SetDeadline(end)
		}
		name, err = bufio.NewReader(c).ReadString('\n')
		name = strings.TrimSpace(name)
		return err
	})
	return name, err
}

// eventually waits until want is heard at an address.
func (m *member) eventually(ctx context.Context, t *testing.T, what, addr, want string) {
	t.Helper()
	if err := lab.Until(ctx, what, func() error {
		if got := m.hears(addr); got != want {
			return fmt.Errorf("%s hears %q, want %q", addr, got, want)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// S59: security groups take effect on live ports, on both sides of hosts.
func TestSecurityGroups(t *testing.T) {
	w := shared
	ctx := w.within(t, "no_rule_in")
	web, near, far := w.guest(ctx, t, 1, "red", true), w.guest(ctx, t, 1, "red", true), w.guest(ctx, t, 2, "red", true)
	web.greets(t, 8443)
	groups, ports := pb.NewGroupsClient(w.conn), pb.NewPortsClient(w.conn)
	addr := web.ip + ":8443"
	https := &pb.Rule{Name: "https", Priority: 100, Direction: "in", Action: "allow", Protocol: "tcp", MinPort: 8443}
	for _, name := range []string{"web", "friends"} {
		if _, err := groups.CreateGroup(ctx, &pb.CreateGroupRequest{RequestId: w.id(), Tenant: tenant, Network: "red", Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	put := func(m *member, names ...string) {
		t.Helper()
		if _, err := ports.SetPortGroups(ctx, &pb.SetPortGroupsRequest{RequestId: w.id(), Tenant: tenant, Name: m.port, Groups: names}); err != nil {
			t.Fatal(err)
		}
	}
	set := func(rules ...*pb.Rule) {
		t.Helper()
		if _, err := groups.SetRules(ctx, &pb.SetRulesRequest{RequestId: w.id(), Tenant: tenant, Network: "red", Name: "web", Rules: rules}); err != nil {
			t.Fatal(err)
		}
	}
	all := func(what, want string) {
		t.Helper()
		near.eventually(ctx, t, what+", same host", addr, want)
		far.eventually(ctx, t, what+", other host", addr, want)
	}
	all("in no group", web.port)
	put(web, "web")
	all("in a group without rules", "")
	set(https)
	all("with a rule", web.port)
	silent(ctx, t, "what no rule allows", far.Node, web.ip)
	friends := &pb.Rule{Name: "friends", Priority: 100, Direction: "in", Action: "allow", Protocol: "tcp", MinPort: 8443, RemoteGroup: "friends"}
	set(friends)
	all("from friends only", "")
	put(far, "friends")
	far.eventually(ctx, t, "a friend", addr, web.port)
	near.eventually(ctx, t, "no friend", addr, "")
	put(web)
	all("in no group any more", web.port)
	put(far)
	for _, name := range []string{"web", "friends"} {
		if _, err := groups.DeleteGroup(ctx, &pb.DeleteGroupRequest{RequestId: w.id(), Tenant: tenant, Network: "red", Name: name}); err != nil {
			t.Error(err)
		}
	}
}

// S62, S84: a service leads to its VMs wherever they are; one that is swapped away takes its
// seat to the other network's service of the name.
func TestServiceFollows(t *testing.T) {
	w := shared
	ctx := w.within(t, "no_backend", "dead_backend")
	one, client, blue := w.guest(ctx, t, 2, "red", true), w.guest(ctx, t, 1, "red", true), w.guest(ctx, t, 1, "blue", true)
	one.greets(t, 8443)
	services := pb.NewServicesClient(w.conn)
	const vip = "10.20.200.200"
	for _, network := range []string{"red", "blue"} {
		s := &pb.Service{Tenant: tenant, Network: network, Name: "web", Ip: vip, Port: 443, Protocol: "tcp"}
		if network == "red" {
			s.Backends = []*pb.Backend{{Member: one.port, Port: 8443}}
		}
		if _, err := services.CreateService(ctx, &pb.CreateServiceRequest{RequestId: w.id(), Service: s}); err != nil {
			t.Fatal(err)
		}
	}
	client.eventually(ctx, t, "behind red's", vip+":443", one.port)
	ip := w.ip()
	one.also(ctx, t, ip)
	one.move(ctx, t, &pb.StartSwapRequest{Network: "blue", Ip: ip, Trigger: "none", Services: []string{"web"}})
	blue.eventually(ctx, t, "behind blue's", vip+":443", one.port)
	client.eventually(ctx, t, "behind red's no more", vip+":443", "")
	for _, network := range []string{"red", "blue"} {
		if _, err := services.DeleteService(ctx, &pb.DeleteServiceRequest{RequestId: w.id(), Tenant: tenant, Network: network, Name: "web"}); err != nil {
			t.Error(err)
		}
	}
}

// Two networks of a tenant reach one another while they are peers, in both families.
func TestPeering(t *testing.T) {
	w := shared
	ctx := w.within(t, "no_route")
	networks := pb.NewNetworksClient(w.conn)
	// Detached guests' addresses rest, so the networks are of no further use.
	for moniker, subnets := range map[string][]*pb.Subnet{
		"north": {{Prefix: "10.31.0.0/16"}, {Prefix: "fd31::/64"}}, "south": {{Prefix: "10.32.0.0/16"}, {Prefix: "fd32::/64"}},
	} {
		if _, err := networks.CreateNetwork(ctx, &pb.CreateNetworkRequest{RequestId: w.id(), Network: &pb.Network{Moniker: moniker, Tenant: tenant, Subnets: subnets}}); err != nil {
			t.Fatal(err)
		}
	}
	n, s := w.guestAt(ctx, t, 1, "north", "10.31.7.9", true), w.guestAt(ctx, t, 2, "south", "10.32.7.9", true)
	s.greets(t, 8443)
	six := s.six(ctx, t)
	n.six(ctx, t)
	silent(ctx, t, "before they are peers", n.Node, s.ip)
	if _, err := networks.Peer(ctx, &pb.PeerRequest{RequestId: w.id(), Tenant: tenant, Moniker: "north", Peer: "south"}); err != nil {
		t.Fatal(err)
	}
	n.eventually(ctx, t, "IPv4", s.ip+":8443", s.port)
	n.eventually(ctx, t, "IPv6", "["+six+"]:8443", s.port)
	if _, err := networks.Unpeer(ctx, &pb.UnpeerRequest{RequestId: w.id(), Tenant: tenant, Moniker: "south", Peer: "north"}); err != nil {
		t.Fatal(err)
	}
	n.eventually(ctx, t, "no peers any more", s.ip+":8443", "")
	n.eventually(ctx, t, "no peers any more, IPv6", "["+six+"]:8443", "")
}

// six sets a guest's IPv6 address and default route by hand, and returns the address.
func (m *member) six(ctx context.Context, t *testing.T) string {
	t.Helper()
	p, err := pb.NewPortsClient(m.w.conn).GetPort(ctx, &pb.GetPortRequest{Tenant: tenant, Name: m.port})
	if err != nil || len(p.Addrs) != 2 {
		t.Fatalf("port %v, %v", p, err)
	}
	gateway := netip.AddrFrom16([16]byte{0xfe, 0x80, 8: 0x52, 9: 0x50, 10: 0x4c, 13: byte(p.Vni >> 16), 14: byte(p.Vni >> 8), 15: byte(p.Vni)})
	for _, args := range [][]string{
		{"sysctl", "-qw", "net.ipv6.conf.eth0.accept_ra=0"}, // its route would be in the way of ours
		{"sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=0"},
		{"ip", "-6", "addr", "add", p.Addrs[1], "dev", "eth0", "nodad"},
		{"ip", "-6", "route", "add", "default", "via", gateway.String(), "dev", "eth0"},
	} {
		if out, err := m.Run(ctx, args...); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	ip, _, _ := strings.Cut(p.Addrs[1], "/")
	return ip
}
