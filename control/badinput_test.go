package control

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "replug/control/controlpb"
	"replug/control/network"
	"replug/directory/store"
	"replug/directory/vnet"
)

// Bad input gets a clear error and loses nothing: every row is as before.
func TestBadInput(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.VNIs = network.Range{Min: 70001, Max: 70003} })
	w.furnish() // two of three VNIs
	h := w.host("h7", 7)
	vm := w.vm("web-1", "red", "10.17.34.51")
	w.vm("db-1", "blue", "10.17.34.52")
	op := w.as("olga")
	must(op.CreateNetwork(w.ctx, &pb.CreateNetworkRequest{RequestId: "full", Network: &pb.Network{
		Moniker: "narrow", Tenant: "acme", Subnets: []*pb.Subnet{{Prefix: "10.33.0.8/30"}}}}))(t)
	w.vm("nat-1", "narrow", "")
	must(op.CreateNetwork(w.ctx, &pb.CreateNetworkRequest{RequestId: "jumbo", Network: &pb.Network{
		Moniker: "jumbo", Tenant: "acme", Mtu: 8950, Vni: 80007, Subnets: []*pb.Subnet{{Prefix: "10.17.34.0/24"}}}}))(t)
	h.behave(manners{deaf: true})
	swap := func(q *pb.StartSwapRequest) func() error {
		return func() error {
			q.RequestId, q.Tenant = id("bad", q.String()), "acme"
			_, plan := op.PlanSwap(w.ctx, q)
			_, start := op.StartSwap(w.ctx, q)
			if plan == nil || start == nil || plan.Error() != start.Error() {
				t.Errorf("plan says %v, start says %v", plan, start)
			}
			return start
		}
	}
	newNet := func(n *pb.Network) func() error {
		return func() error {
			n.Tenant = "acme"
			_, err := op.CreateNetwork(w.ctx, &pb.CreateNetworkRequest{RequestId: id("bad", n.String()), Network: n})
			return err
		}
	}
	newVM := func(q *pb.CreateVMRequest) func() error {
		return func() error {
			q.RequestId, q.Tenant = id("bad", q.String()), "acme"
			_, err := op.CreateVM(w.ctx, q)
			return err
		}
	}
	subnets := func(all ...string) (s []*pb.Subnet) {
		for _, p := range all {
			s = append(s, &pb.Subnet{Prefix: p})
		}
		return s
	}
	for _, c := range []struct {
		name  string
		want  codes.Code
		words []string
		call  func() error
	}{
		{"unknown moniker", codes.NotFound, []string{"gren", "blue"}, swap(&pb.StartSwapRequest{Vm: "web-1", Network: "gren"})},
		{"unknown VM", codes.NotFound, []string{"web-9"}, swap(&pb.StartSwapRequest{Vm: "web-9", Network: "blue"})},
		{"neither VM nor port", codes.InvalidArgument, nil, swap(&pb.StartSwapRequest{Network: "blue"})},
		{"CA outside the network", codes.InvalidArgument, []string{"10.99.0.5", "10.17.34.0/24"}, swap(&pb.StartSwapRequest{Vm: "web-1", Network: "blue", Ip: "10.99.0.5"})},
		{"CA of the gateway", codes.InvalidArgument, []string{"gateway"}, swap(&pb.StartSwapRequest{Vm: "web-1", Network: "blue", Ip: "10.17.34.1"})},
		{"CA of the broadcast", codes.InvalidArgument, []string{"broadcast"}, swap(&pb.StartSwapRequest{Vm: "web-1", Network: "blue", Ip: "10.17.34.255"})},
		{"CA of metadata", codes.InvalidArgument, nil, swap(&pb.StartSwapRequest{Vm: "web-1", Network: "blue", Ip: "169.254.169.254"})},
		{"CA that is none", codes.InvalidArgument, nil, swap(&pb.StartSwapRequest{Vm: "web-1", Network: "blue", Ip: "10.17.34.256"})},
		{"CA taken", codes.FailedPrecondition, []string{"10.17.34.52", "taken"}, swap(&pb.StartSwapRequest{Vm: "web-1", Network: "blue", Ip: "10.17.34.52"})},
		{"no CA left", codes.ResourceExhausted, []string{"10.33.0.8/30"}, swap(&pb.StartSwapRequest{Vm: "web-1", Network: "narrow"})},
		{"where it already is", codes.FailedPrecondition, []string{"already"}, swap(&pb.StartSwapRequest{Vm: "web-1", Network: "red"})},
		{"the address it already has", codes.FailedPrecondition, []string{"already"}, swap(&pb.StartSwapRequest{Vm: "web-1", Network: "red", Ip: "10.17.34.51"})},
		{"MTU that the host can't carry", codes.FailedPrecondition, []string{"8950", "1500"}, swap(&pb.StartSwapRequest{Vm: "web-1", Network: "jumbo"})},
		{"host name", codes.InvalidArgument, []string{"host name"}, swap(&pb.StartSwapRequest{Vm: "web-1", Network: "blue", Hostname: "web_1!"})},
		{"confirm", codes.InvalidArgument, nil, swap(&pb.StartSwapRequest{Vm: "web-1", Network: "blue", Confirm: "maybe"})},
		{"trigger", codes.InvalidArgument, nil, swap(&pb.StartSwapRequest{Vm: "web-1", Network: "blue", Trigger: "pray"})},
		{"negative budget", codes.InvalidArgument, nil, swap(&pb.StartSwapRequest{Vm: "web-1", Network: "blue", LeaseBudget: durationpb.New(-time.Second)})},
		{"a VM's port by its port", codes.InvalidArgument, []string{vm.Id}, swap(&pb.StartSwapRequest{Port: vm.Port.Name, Network: "blue"})},

		{"VNI exhausted", codes.ResourceExhausted, []string{"70001", "70003"}, newNet(&pb.Network{Moniker: "green", Subnets: subnets("10.5.0.0/16")})},
		{"VNI taken", codes.AlreadyExists, []string{"70002"}, newNet(&pb.Network{Moniker: "green", Vni: 70002, Subnets: subnets("10.5.0.0/16")})},
		{"VNI too large", codes.InvalidArgument, nil, newNet(&pb.Network{Moniker: "green", Vni: 1 << 24, Subnets: subnets("10.5.0.0/16")})},
		{"moniker there", codes.AlreadyExists, nil, newNet(&pb.Network{Moniker: "red", Subnets: subnets("10.5.0.0/16")})},
		{"moniker malformed", codes.InvalidArgument, nil, newNet(&pb.Network{Moniker: "Red Net", Subnets: subnets("10.5.0.0/16")})},
		{"no subnet", codes.InvalidArgument, nil, newNet(&pb.Network{Moniker: "green"})},
		{"prefix not canonical", codes.InvalidArgument, []string{"10.5.0.0/16"}, newNet(&pb.Network{Moniker: "green", Subnets: subnets("10.5.7.9/16")})},
		{"subnets overlap", codes.InvalidArgument, nil, newNet(&pb.Network{Moniker: "green", Subnets: subnets("10.5.0.0/16", "10.5.7.0/24")})},
		{"link-local subnet", codes.InvalidArgument, []string{"metadata"}, newNet(&pb.Network{Moniker: "green", Subnets: subnets("169.254.128.0/17")})},
		{"gateway outside", codes.InvalidArgument, nil, newNet(&pb.Network{Moniker: "green", Subnets: []*pb.Subnet{{Prefix: "10.5.0.0/16", Gateway: "10.6.0.1"}}})},
		{"route out of the network", codes.InvalidArgument, nil, newNet(&pb.Network{Moniker: "green", Subnets: subnets("10.5.0.0/16"),
			Routes: []*pb.Route{{Prefix: "0.0.0.0/0", NextHop: "10.6.0.9"}}})},
		{"MTU", codes.InvalidArgument, nil, newNet(&pb.Network{Moniker: "green", Mtu: 200, Subnets: subnets("10.5.0.0/16")})},
		{"lease", codes.InvalidArgument, nil, newNet(&pb.Network{Moniker: "green", Lease: durationpb.New(time.Second), Subnets: subnets("10.5.0.0/16")})},
		{"DNS", codes.InvalidArgument, nil, newNet(&pb.Network{Moniker: "green", Dns: []string{"224.0.0.9"}, Subnets: subnets("10.5.0.0/16")})},

		{"five DNS servers of a family", codes.InvalidArgument, []string{"5 DNS servers of ipv4", "4"}, newNet(&pb.Network{Moniker: "green", Subnets: subnets("10.5.0.0/16"),
			Dns: []string{"10.5.0.3", "10.5.0.4", "10.5.0.5", "10.5.0.6", "10.5.0.7"}})},
		{"five NTP servers of a family", codes.InvalidArgument, []string{"5 NTP servers of ipv6", "4"}, newNet(&pb.Network{Moniker: "green", Subnets: subnets("10.5.0.0/16", "fd05:7::/64"),
			Ntp: []string{"10.5.0.3", "fd05:7::3", "fd05:7::4", "fd05:7::5", "fd05:7::6", "fd05:7::7"}})},

		{"VM name taken", codes.AlreadyExists, []string{"web-1"}, newVM(&pb.CreateVMRequest{Name: "web-1", Type: "tiny", Network: "red"})},
		{"VM name malformed", codes.InvalidArgument, nil, newVM(&pb.CreateVMRequest{Name: "../web", Type: "tiny", Network: "red"})},
		{"unknown type", codes.NotFound, []string{"huge"}, newVM(&pb.CreateVMRequest{Name: "web-2", Type: "huge", Network: "red"})},
		{"unknown host", codes.FailedPrecondition, []string{"h88"}, newVM(&pb.CreateVMRequest{Name: "web-2", Type: "tiny", Network: "red", Host: "h88"})},
		{"user", codes.InvalidArgument, []string{"user"}, newVM(&pb.CreateVMRequest{Name: "web-2", Type: "tiny", Network: "red", Settings: &pb.Settings{User: "root; rm"}})},
		{"file path", codes.InvalidArgument, []string{"path"}, newVM(&pb.CreateVMRequest{Name: "web-2", Type: "tiny", Network: "red",
			Settings: &pb.Settings{Files: []*pb.File{{Path: "/etc/../root/x"}}}})},
		{"data disk", codes.InvalidArgument, []string{"disk"}, newVM(&pb.CreateVMRequest{Name: "web-2", Type: "tiny", Network: "red", DataDisks: []int64{7}})},

		{"network in use", codes.FailedPrecondition, []string{"in use"}, func() error {
			_, err := op.DeleteNetwork(w.ctx, &pb.DeleteNetworkRequest{RequestId: "bad-net", Tenant: "acme", Moniker: "red"})
			return err
		}},
		{"tenant in use", codes.FailedPrecondition, []string{"networks"}, func() error {
			_, err := op.DeleteTenant(w.ctx, &pb.DeleteTenantRequest{RequestId: "bad-tenant", Name: "acme"})
			return err
		}},
		{"type in use", codes.FailedPrecondition, []string{"tiny"}, func() error {
			_, err := op.DeleteVMType(w.ctx, &pb.DeleteVMTypeRequest{RequestId: "bad-type", Name: "tiny"})
			return err
		}},
		{"the platform as a tenant", codes.InvalidArgument, nil, func() error {
			_, err := op.CreateTenant(w.ctx, &pb.CreateTenantRequest{RequestId: "bad-platform", Name: "platform"})
			return err
		}},
		{"pool of an unknown type", codes.NotFound, []string{"huge"}, func() error {
			_, err := op.SetPool(w.ctx, &pb.SetPoolRequest{RequestId: "bad-pool", Type: "huge", Size: new(int32(3))})
			return err
		}},
		{"negative pool", codes.InvalidArgument, nil, func() error {
			_, err := op.SetPool(w.ctx, &pb.SetPoolRequest{RequestId: "bad-pool-2", Type: "tiny", Size: new(int32(-3))})
			return err
		}},
		{"claim of an unknown type", codes.NotFound, []string{"huge"}, func() error {
			_, err := op.CreateClaim(w.ctx, &pb.CreateClaimRequest{RequestId: "bad-claim", Tenant: "acme", Name: "web-2", Type: "huge", Network: "red"})
			return err
		}},
		{"host that is connected", codes.FailedPrecondition, []string{"connected"}, func() error {
			_, err := op.DeleteHost(w.ctx, &pb.DeleteHostRequest{RequestId: "bad-host", Name: "h7"})
			return err
		}},
		{"detach of a VM's port", codes.FailedPrecondition, []string{vm.Id}, func() error {
			_, err := op.DetachPort(w.ctx, &pb.DetachPortRequest{RequestId: "bad-port", Name: vm.Port.Name})
			return err
		}},
		{"MAC of a group", codes.InvalidArgument, []string{"MAC"}, func() error {
			_, err := op.AttachPort(w.ctx, &pb.AttachPortRequest{RequestId: "bad-mac", Tenant: "acme", Name: "p", Host: "h7", Tap: "tap9", Mac: "03:52:0a:1b:2c:3d", Network: "red"})
			return err
		}},
		{"MAC that another port has", codes.FailedPrecondition, []string{vm.Port.Name}, func() error {
			_, err := op.AttachPort(w.ctx, &pb.AttachPortRequest{RequestId: "bad-mac2", Tenant: "acme", Name: "p", Host: "h7", Tap: "tap9", Mac: vm.Port.Mac, Network: "red"})
			return err
		}},
		{"tap of the host agent's own", codes.InvalidArgument, []string{"rp-tap"}, func() error {
			_, err := op.AttachPort(w.ctx, &pb.AttachPortRequest{RequestId: "bad-tap", Tenant: "acme", Name: "p", Host: "h7", Tap: "rp-tap9", Mac: "52:54:00:1a:2b:3c", Network: "red"})
			return err
		}},
		{"no request id", codes.InvalidArgument, []string{"request id"}, func() error {
			_, err := op.DeleteVM(w.ctx, &pb.DeleteVMRequest{Tenant: "acme", Name: "web-1"})
			return err
		}},
	} {
		before := w.rows()
		code(t, c.name, c.call(), c.want, c.words...)
		if d := differ(before, w.rows()); d != "" {
			t.Errorf("%s: refused, but rows changed:\n%s", c.name, d)
		}
	}
}

// Two hosts can't have the same physical addresses, nor a host a VTEP's, nor one name twice.
func TestBadHosts(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	w.host("h7", 7)
	op := w.as("olga")
	for i, pa := range []string{"100.64.9.77", "172.31.11.2"} {
		must(op.AddVTEP(w.ctx, &pb.AddVTEPRequest{RequestId: fmt.Sprint("v", i), Tenant: "acme", Vtep: &pb.VTEP{
			Name: fmt.Sprint("edge-", i), Network: "red", Ip: fmt.Sprint("10.17.34.", 90+i), Pa: pa, Mac: "02:17:34:56:78:9a"}}))(t)
	}
	before := w.rows()
	refused := func(name string, h vnet.HostInfo, want codes.Code, word string) {
		t.Helper()
		code(t, name, w.attachOnce(h), want, word)
		if d := differ(before, w.rows()); d != "" {
			t.Errorf("%s: rows changed:\n%s", name, d)
		}
	}
	overlap := hostInfo("h9", 9)
	overlap.PAPrefix = hostInfo("h7", 7).PAPrefix
	refused("PA prefix of another host", overlap, codes.FailedPrecondition, "100.64.7.0/24")
	same := hostInfo("h9", 9)
	same.Address = hostInfo("h7", 7).Address
	refused("address of another host", same, codes.FailedPrecondition, "172.31.7.2")
	refused("name of a host that is there", hostInfo("h7", 7), codes.AlreadyExists, "h7")
	refused("PA prefix with a VTEP in it", hostInfo("h9", 9), codes.FailedPrecondition, `100.64.9.77 is that of VTEP "edge-0" of network "red"`)
	refused("address of a VTEP", hostInfo("h9", 11), codes.FailedPrecondition, "172.31.11.2")
	must(op.RemoveVTEP(w.ctx, &pb.RemoveVTEPRequest{RequestId: "gone", Tenant: "acme", Network: "red", Name: "edge-0"}))(t)
	w.host("h9", 9)
}

// All hosts and VTEPs have an underlay of one family: what an older server has let in
// stays and is told, and nothing else gets in.
func TestOneUnderlay(t *testing.T) {
	var said strings.Builder
	w := newWorld(t, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&said, nil)) })
	w.furnish()
	op := w.as("olga")
	six := func(name string, n byte) vnet.HostInfo {
		h := hostInfo(name, n)
		h.Address, h.PAPrefix = netip.AddrFrom16([16]byte{0xfd, 0x31, 7: n, 15: 2}), netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x64, 7: n}), 112)
		return h
	}
	edge := func(id, pa string) error {
		_, err := op.AddVTEP(w.ctx, &pb.AddVTEPRequest{RequestId: id, Tenant: "acme", Vtep: &pb.VTEP{Name: id, Network: "red", Ip: "10.17.34.90", Pa: pa, Mac: "02:17:34:56:78:9a"}})
		return err
	}
	must("", edge("edge-0", "192.0.2.7"))(t)
	code(t, "host beside a VTEP of another family", w.attachOnce(six("h7", 7)), codes.FailedPrecondition,
		"its underlay is IPv6 (fd31:0:0:7::2)", `VTEP "edge-0" of network "red"`, "is IPv4 (192.0.2.7)", "replug vtep remove", "--pa-prefix of IPv4")
	must(op.RemoveVTEP(w.ctx, &pb.RemoveVTEPRequest{RequestId: "gone", Tenant: "acme", Network: "red", Name: "edge-0"}))(t)
	mixed := six("h7", 7)
	mixed.PAPrefix = hostInfo("h7", 7).PAPrefix
	code(t, "a host of two families", w.attachOnce(mixed), codes.InvalidArgument, "fd31:0:0:7::2", "100.64.7.0/24", "two families")
	w.hostOf(six("h7", 7), 3)

	before := w.rows()
	code(t, "host of another family", w.attachOnce(hostInfo("h9", 9)), codes.FailedPrecondition,
		"its underlay is IPv4 (172.31.9.2)", `host "h7" is IPv6 (fd31:0:0:7::2)`, "--pa-prefix of IPv6", "delete the hosts")
	code(t, "VTEP of another family", edge("edge-1", "192.0.2.7"), codes.InvalidArgument, "192.0.2.7", "the underlay is IPv6", "host h7 has fd31:0:0:7::2")
	if d := differ(before, w.rows()); d != "" {
		t.Errorf("refused, but rows changed:\n%s", d)
	}

	must(w.store.Commit(w.ctx, (&store.Txn{}).Put(store.Hosts+"h9", hostInfo("h9", 9))))(t)
	w.host("h9", 9).halt()
	w.hostOf(six("h9", 9), 4) // it has no ports, so it may become one of them
	w.stop()
	if got := said.String(); strings.Count(got, "refused now") != 1 || !strings.Contains(got, "172.31.9.2") {
		t.Errorf("one host of another family was there: told\n%s", got)
	}
}
