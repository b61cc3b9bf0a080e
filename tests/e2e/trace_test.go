package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	pb "replug/control/controlpb"
	"replug/tests/cluster"
	"replug/tests/lab"
)

// A ruled is a network of its own: web sends; near, on the same host, and far, on
// the other one, are in a group that allows ping and HTTPS in, and nothing else.
type ruled struct {
	*world
	web, near, far *member
	vni            uint32
}

func (w *world) ruled(ctx context.Context, t *testing.T, network string) *ruled {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	n, err := pb.NewNetworksClient(w.conn).CreateNetwork(ctx, &pb.CreateNetworkRequest{RequestId: w.id(),
		Network: &pb.Network{Moniker: network, Tenant: tenant, Subnets: []*pb.Subnet{{Prefix: "10.20.0.0/16"}}, FlowLog: true}})
	must(err)
	_, err = pb.NewGroupsClient(w.conn).CreateGroup(ctx, &pb.CreateGroupRequest{RequestId: w.id(), Tenant: tenant, Network: network, Name: "server", Rules: []*pb.Rule{
		{Name: "ping", Priority: 100, Direction: "in", Action: "allow", Protocol: "icmp"},
		{Name: "https", Priority: 110, Direction: "in", Action: "allow", Protocol: "tcp", MinPort: 443, MaxPort: 443}}})
	must(err)
	r := &ruled{world: w, vni: n.Vni, web: w.guest(ctx, t, 1, network, true), near: w.guest(ctx, t, 1, network, true), far: w.guest(ctx, t, 2, network, true)}
	for _, m := range []*member{r.near, r.far} {
		_, err := pb.NewPortsClient(w.conn).SetPortGroups(ctx, &pb.SetPortGroupsRequest{RequestId: w.id(), Tenant: tenant, Name: m.port, Groups: []string{"server"}})
		must(err)
		must(m.serve(t))
		must(lab.Until(ctx, "the rules of "+m.port, func() error {
			if dial(ctx, r.web.Node, m.ip, 80) == nil {
				return errors.New("all passes")
			}
			return dial(ctx, r.web.Node, m.ip, 443)
		}))
	}
	return r
}

// serve accepts TCP at ports 80 and 443 as long as the test runs.
func (m *member) serve(t *testing.T) error {
	return m.Do(func() error {
		for _, port := range []int{80, 443} {
			l, err := net.ListenTCP("tcp4", &net.TCPAddr{Port: port})
			if err != nil {
				return err
			}
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					c.Close()
				}
			}()
			t.Cleanup(func() { l.Close() })
		}
		return nil
	})
}

// dial opens a TCP connection at once and resets it: for what is not to come through, and
// for what is asked again.
func dial(ctx context.Context, from *lab.Node, ip string, port int) error {
	ctx, cancel := context.WithTimeout(ctx, atOnce)
	defer cancel()
	return connect(ctx, from, ip, port)
}

// atOnce is less than a TCP of Linux takes to ask again.
const atOnce = 700 * time.Millisecond

// connect is dial with all of ctx's time.
func connect(ctx context.Context, from *lab.Node, ip string, port int) error {
	return from.Do(func() error {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp4", fmt.Sprintf("%s:%d", ip, port))
		if err != nil {
			return err
		}
		_ = c.(*net.TCPConn).SetLinger(0)
		return c.Close()
	})
}

// trace asks the command line.
func (w *world) trace(ctx context.Context, t *testing.T, args ...string) (*pb.TraceResponse, int) {
	t.Helper()
	out, said, code := w.cli(ctx, t, append([]string{"trace", "--tenant", tenant, "-o", "json"}, args...)...)
	r := &pb.TraceResponse{}
	if err := protojson.Unmarshal([]byte(out), r); err != nil {
		t.Fatalf("trace %v: exit %d, %s: %v in %s", args, code, said, err, out)
	}
	return r, code
}

// What a trace says is what happens: through and refused, on the same host and
// across; and the trace itself leaves no mark.
func TestTraceAgrees(t *testing.T) {
	w := shared
	ctx := w.within(t, "no_rule_in")
	r := w.ruled(ctx, t, "teal")
	real := map[string]func(ctx context.Context, ip string) error{
		"icmp": func(ctx context.Context, ip string) error {
			return cluster.Ping(ctx, r.web.Node, netip.MustParseAddr(ip))
		},
		"tcp/443": func(ctx context.Context, ip string) error { return connect(ctx, r.web.Node, ip, 443) },
		"tcp/80":  func(ctx context.Context, ip string) error { return connect(ctx, r.web.Node, ip, 80) },
	}
	for _, c := range []struct {
		what, to, ip string
		drop, rule   string
		hops         []string
	}{
		{"icmp", r.near.port, r.near.ip, "", "server/ping", []string{"h1 from_vm to_port"}},
		{"icmp", r.far.port, r.far.ip, "", "server/ping", []string{"h1 from_vm to_wire", "h2 from_wire to_port"}},
		{"tcp/443", r.near.port, r.near.ip, "", "server/https", []string{"h1 from_vm to_port"}},
		{"tcp/443", r.far.port, r.far.ip, "", "server/https", []string{"h1 from_vm to_wire", "h2 from_wire to_port"}},
		{"tcp/80", r.near.port, r.near.ip, "no_rule_in", "", []string{"h1 from_vm dropped"}},
		{"tcp/80", r.far.port, r.far.ip, "no_rule_in", "", []string{"h1 from_vm to_wire", "h2 from_wire dropped"}},
		{"icmp", "10.20.250.250", "10.20.250.250", "no_mapping", "", []string{"h1 from_vm dropped"}},
	} {
		got, code := w.trace(ctx, t, "--from", r.web.port, "--to", c.to, c.what)
		var hops []string
		for _, h := range got.Hops {
			hops = append(hops, h.Host+" "+h.Program+" "+h.Verdict)
		}
		last := got.Hops[len(got.Hops)-1]
		through := c.drop == ""
		if got.Delivered != through || (code == 0) != through || last.Drop != c.drop || last.RuleIn != c.rule || !slices.Equal(hops, c.hops) {
			t.Errorf("trace %s to %s: exit %d, %q, hops %q, drop %q, rule %q; want %q, %q, %q", c.what, c.to, code, got.Summary, hops, last.Drop, last.RuleIn, c.hops, c.drop, c.rule)
		}
		if err := w.earnest(ctx, t, through, func(ctx context.Context) error { return real[c.what](ctx, c.ip) }); err != nil {
			t.Errorf("in earnest %s to %s: %v, but the trace says %q", c.what, c.to, err, got.Summary)
		}
	}
	r.service(ctx, t)
	r.unmarked(ctx, t)
	got, _ := w.trace(ctx, t, "--from", r.web.port, "--to", r.far.port, "--from-ip", "10.20.250.7", "icmp")
	if got.Hops[0].Drop != "spoofed_ca" {
		t.Errorf("from an address that isn't the VM's: %v", got)
	}
	got, _ = w.trace(ctx, t, "--from", r.web.port, "--to", r.far.port, "--size", "1900", "udp/443")
	if got.Hops[0].Drop != "too_big" || len(got.Hops[0].Frame) == 0 {
		t.Errorf("a frame that doesn't fit: %v", got)
	}
	out, _, _ := w.cli(ctx, t, "trace", "--tenant", tenant, "--from", r.web.port, "--to", r.far.port, "tcp/443")
	for _, want := range []string{"1. host h1, from_vm", "leaves as  Ethernet", "VXLAN VNI " + fmt.Sprint(r.vni), "2. host h2, from_wire", "allowed by server/https (new flow)",
		"delivered to " + tenant + "." + r.far.port, "TCP 50123 > 443 [syn]"} {
		if !strings.Contains(out, want) {
			t.Errorf("the trace for people says nothing of %q:\n%s", want, out)
		}
	}
}

// earnest returns an error if what a trace has foretold doesn't happen. What must come
// through has all of ctx's time, and no frame of it may be refused; what must not has a moment.
func (w *world) earnest(ctx context.Context, t *testing.T, through bool, do func(context.Context) error) error {
	t.Helper()
	if !through {
		short, cancel := context.WithTimeout(ctx, atOnce)
		defer cancel()
		if do(short) == nil {
			return errors.New("it comes through")
		}
		return nil
	}
	before := w.dropped(ctx, t, "no_rule_in")
	err := do(ctx)
	if n := w.dropped(ctx, t, "no_rule_in") - before; n > 0 {
		err = errors.Join(err, fmt.Errorf("%.0f frames were refused", n))
	}
	return err
}

// service traces a connection to a service whose backend is on the other host.
func (r *ruled) service(ctx context.Context, t *testing.T) {
	t.Helper()
	const vip = "10.20.240.1"
	_, err := pb.NewServicesClient(r.conn).CreateService(ctx, &pb.CreateServiceRequest{RequestId: r.id(), Service: &pb.Service{
		Name: "shop", Tenant: tenant, Network: "teal", Ip: vip, Port: 443, Protocol: "tcp", Backends: []*pb.Backend{{Member: r.far.port}}}})
	if err == nil {
		err = lab.Until(ctx, "the service", func() error { return dial(ctx, r.web.Node, vip, 443) })
	}
	if err != nil {
		t.Fatal(err)
	}
	got, code := r.trace(ctx, t, "--from", r.web.port, "--to", vip, "tcp/443")
	if h := got.Hops[0]; code != 0 || len(got.Hops) != 2 || h.Service != vip+":443" || h.Backend != r.far.ip+":443" || got.Hops[1].ToPort != tenant+"."+r.far.port {
		t.Errorf("a trace to a service: exit %d, %v", code, got)
	}
}

// unmarked traces a frame that is dropped and one that passes, again and again:
// no drop is counted, and no flow remembered.
func (r *ruled) unmarked(ctx context.Context, t *testing.T) {
	t.Helper()
	counts := func() (n [3]float64) {
		for i, host := range []int{1, 2} {
			m := metrics(ctx, t, r.Lab.Host(host), 9417)
			n[i] = m[`replug_drops_total{reason="no_rule_in"}`]
			n[2] += m["replug_forwarded_total"]
		}
		return n
	}
	before := counts()
	const times = 25
	for range times {
		r.trace(ctx, t, "--from", r.web.port, "--to", r.far.port, "--from-port", "50999", "tcp/443")
		r.trace(ctx, t, "--from", r.web.port, "--to", r.near.port, "tcp/80")
	}
	after := counts()
	if before[0] != after[0] || before[1] != after[1] || after[2]-before[2] >= times {
		t.Errorf("%d traces have counted: drops and forwarded %v, then %v", 2*times, before, after)
	}
	for _, m := range []*member{r.web, r.far} {
		out, said, code := r.cli(ctx, t, "flows", "--tenant", tenant, m.port)
		if code != 0 || strings.Contains(out, ":50999") {
			t.Errorf("flows of %s after a trace: exit %d, %s%s", m.port, code, said, out)
		}
	}
}

// A trace of IPv6 says what happens, as one of IPv4: through and refused, on the
// same host and across, and the frame on the wire.
func TestTraceSix(t *testing.T) {
	w := shared
	ctx := w.within(t, "no_rule_in")
	n, err := pb.NewNetworksClient(w.conn).CreateNetwork(ctx, &pb.CreateNetworkRequest{RequestId: w.id(),
		Network: &pb.Network{Moniker: "violet", Tenant: tenant, Subnets: []*pb.Subnet{{Prefix: "10.20.0.0/16"}, {Prefix: "fd20:7::/64"}}}})
	if err != nil {
		t.Fatal(err)
	}
	web, near, far := w.guest(ctx, t, 1, "violet", true), w.guest(ctx, t, 1, "violet", true), w.guest(ctx, t, 2, "violet", true)
	w.must(ctx, t, "group", "create", "six", "--network", "violet", "--rule", "100 https in allow tcp/8443 from fd20:7::/64", "--rule", "110 ping in allow icmpv6/128")
	web.six(ctx, t)
	for _, m := range []*member{near, far} {
		six := m.six(ctx, t)
		m.greets(t, 8443)
		m.greets(t, 8080)
		web.eventually(ctx, t, "before there are rules", "["+six+"]:8080", m.port)
		w.must(ctx, t, "port", "group", m.port, "six")
		web.eventually(ctx, t, "once there are", "["+six+"]:8080", "")
		hops := []string{"h1 from_vm to_port"}
		if m == far {
			hops = []string{"h1 from_vm to_wire", "h2 from_wire to_port"}
		}
		for _, c := range []struct{ what, drop, rule string }{{"tcp/8443", "", "six/https"}, {"tcp/8080", "no_rule_in", ""}, {"icmp", "", "six/ping"}} {
			got, code := w.trace(ctx, t, "--from", web.port, "--to", six, c.what)
			var is []string
			for _, h := range got.Hops {
				is = append(is, h.Host+" "+h.Program+" "+h.Verdict)
			}
			want := slices.Clone(hops)
			if c.drop != "" {
				i := len(want) - 1
				want[i] = want[i][:strings.LastIndex(want[i], " ")] + " dropped"
			}
			last := got.Hops[len(got.Hops)-1]
			if (code == 0) != (c.drop == "") || last.Drop != c.drop || last.RuleIn != c.rule || !slices.Equal(is, want) {
				t.Errorf("trace %s to %s: exit %d, %q, hops %q, drop %q, rule %q; want %q, %q, %q", c.what, six, code, got.Summary, is, last.Drop, last.RuleIn, want, c.drop, c.rule)
			}
		}
		if err := w.earnest(ctx, t, true, func(ctx context.Context) error {
			got, err := web.answered(ctx, "", "["+six+"]:8443")
			if err == nil && got != m.port {
				err = fmt.Errorf("hears %q", got)
			}
			return err
		}); err != nil {
			t.Errorf("in earnest to %s: %v", m.port, err)
		}
	}
	out, _, _ := w.cli(ctx, t, "trace", "--tenant", tenant, "--from", web.port, "--to", far.port, "--from-ip", web.v6(ctx, t), "tcp/8443")
	for _, want := range []string{"IPv6 fd20:7::", "VXLAN VNI " + fmt.Sprint(n.Vni), "fd20:7::/64, on link", "allowed by six/https (new flow)", "delivered to " + tenant + "." + far.port} {
		if !strings.Contains(out, want) {
			t.Errorf("the trace for people says nothing of %q:\n%s", want, out)
		}
	}
}

// v6 returns a port's IPv6 address.
func (m *member) v6(ctx context.Context, t *testing.T) string {
	t.Helper()
	p, err := pb.NewPortsClient(m.w.conn).GetPort(ctx, &pb.GetPortRequest{Tenant: tenant, Name: m.port})
	if err != nil || len(p.Addrs) != 2 {
		t.Fatalf("port %v, %v", p, err)
	}
	ip, _, _ := strings.Cut(p.Addrs[1], "/")
	return ip
}
