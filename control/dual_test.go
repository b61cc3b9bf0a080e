package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
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

// dual makes dual networks east and west of the same ranges, and a type for each routing.
func (w *world) dual() {
	w.t.Helper()
	op := w.as("olga")
	for _, m := range []string{"east", "west"} {
		must(op.CreateNetwork(w.ctx, &pb.CreateNetworkRequest{RequestId: id(m), Network: &pb.Network{
			Moniker: m, Tenant: "acme", Subnets: []*pb.Subnet{{Prefix: "10.23.45.0/24"}, {Prefix: "fd23:45::"}},
			Dns: []string{"10.23.45.53", "fd23:45::53"},
		}}))(w.t)
	}
	for _, routing := range []string{"ipv6", "dual"} {
		must(op.CreateVMType(w.ctx, &pb.CreateVMTypeRequest{RequestId: id(routing), Type: &pb.VMType{
			Name: routing, Cpus: 1, MemoryMib: 64, Image: "small", Routing: routing,
		}}))(w.t)
	}
}

// made makes a VM of acme and waits until it is ready.
func (w *world) made(q *pb.CreateVMRequest) *pb.VM {
	w.t.Helper()
	q.RequestId, q.Tenant = id("made", q.Name), "acme"
	must(w.as("olga").CreateVM(w.ctx, q))(w.t)
	return w.inPhase(q.Name, "ready")
}

// stored reads a port's intent as the store has it.
func (w *world) stored(port string) vnet.Intent {
	w.t.Helper()
	rows, _, err := store.List[vnet.Intent](w.ctx, w.store, store.Intents)
	if err != nil {
		w.t.Fatal(err)
	}
	i := slices.IndexFunc(rows, func(r store.Row[vnet.Intent]) bool { return r.Value.Port == port })
	if i < 0 {
		w.t.Fatalf("port %s has no intent", port)
	}
	return rows[i].Value
}

// mapped reads the addresses of a network that lead to a port.
func (w *world) mapped(v uint32, port string) string {
	w.t.Helper()
	rows, _, err := store.List[vnet.Mapping](w.ctx, w.store, store.NetworkMappings(vnet.VNI(v)))
	if err != nil {
		w.t.Fatal(err)
	}
	var cas []string
	for _, r := range rows {
		if r.Value.Port == port {
			cas = append(cas, fmt.Sprintf("%s %b", r.Value.CA, r.Value.Groups))
		}
	}
	return strings.Join(cas, ", ")
}

// S18, X3: a VM has the families that its type routes, wherever it is.
func TestRouting(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	w.dual()
	w.host("h7", 7)
	for _, c := range []struct {
		name, typ string
		ips       []string
		want      string
	}{
		{"both", "dual", nil, "[10.23.45.2/24 fd23:45::1/64]"},
		{"both-asked", "dual", []string{"fd23:45::9", "10.23.45.9"}, "[10.23.45.9/24 fd23:45::9/64]"},
		{"one-asked", "dual", []string{"fd23:45::17"}, "[10.23.45.3/24 fd23:45::17/64]"},
		{"six", "ipv6", nil, "[fd23:45::2/64]"},
		{"four", "tiny", nil, "[10.23.45.4/24]"},
	} {
		vm := w.made(&pb.CreateVMRequest{Name: c.name, Type: c.typ, Network: "east", Ips: c.ips})
		if got := fmt.Sprint(vm.Port.Addrs); got != c.want {
			t.Errorf("%s: addresses %s, want %s", c.name, got, c.want)
		}
	}
	if in := w.stored("vm-1.0"); in.Current.Addrs[1].Gateway != in.Current.VNI.Gateway6() || in.Current.Addrs[0].Gateway.String() != "10.23.45.1" {
		t.Errorf("gateways %+v", in.Current.Addrs)
	}
	op := w.as("olga")
	_, err := op.CreateVM(w.ctx, &pb.CreateVMRequest{RequestId: "a", Tenant: "acme", Name: "x", Type: "dual", Network: "red"})
	code(t, "a dual type in an IPv4 network", err, codes.FailedPrecondition, "dual", "ipv4", "red")
	_, err = op.StartSwap(w.ctx, &pb.StartSwapRequest{RequestId: "b", Tenant: "acme", Vm: "both", Network: "red"})
	code(t, "a swap that would lose IPv6", err, codes.FailedPrecondition, "dual", "red")
	_, err = op.StartSwap(w.ctx, &pb.StartSwapRequest{RequestId: "c", Tenant: "acme", Vm: "four", Network: "west", Ips: []string{"fd23:45::9"}})
	code(t, "a swap that would add IPv6", err, codes.InvalidArgument, "ipv4")
	_, err = op.CreateClaim(w.ctx, &pb.CreateClaimRequest{RequestId: "d", Tenant: "acme", Name: "y", Type: "ipv6", Network: "red"})
	code(t, "a claim of an IPv6 type in an IPv4 network", err, codes.FailedPrecondition, "ipv6", "red")
}

// A dual VM moves with both addresses, there and back, undone too, and leaves
// nothing. Within its network it changes one address and keeps the other.
func TestDualSwap(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Rest = 20 * time.Millisecond })
	w.furnish()
	w.dual()
	h := w.host("h7", 7)
	before := w.rows()
	vm := w.made(&pb.CreateVMRequest{Name: "web-1", Type: "dual", Network: "east", Ips: []string{"10.23.45.9", "fd23:45::9"}})
	s := w.swapped(&pb.StartSwapRequest{RequestId: "a", Vm: "web-1", Network: "west", Ips: []string{"fd23:45::77"}})
	if !s.Ok || fmt.Sprint(s.After.Addrs) != "[10.23.45.2/24 fd23:45::77/64]" {
		t.Fatalf("swap %v", s)
	}
	if was, is := w.mapped(s.Before.Vni, vm.Port.Name), w.mapped(s.After.Vni, vm.Port.Name); was != "" || is != "10.23.45.2 0, fd23:45::77 0" {
		t.Errorf("mapped in the old network: %s, in the new one: %s", was, is)
	}
	s = w.swapped(&pb.StartSwapRequest{RequestId: "b", Vm: "web-1", Network: "west", Ips: []string{"10.23.45.99"}})
	if !s.Ok || fmt.Sprint(s.After.Addrs) != "[10.23.45.99/24 fd23:45::77/64]" || w.mapped(s.After.Vni, vm.Port.Name) != "10.23.45.99 0, fd23:45::77 0" {
		t.Fatalf("swap within the network %v, mapped %s", s, w.mapped(s.After.Vni, vm.Port.Name))
	}
	_, err := w.as("olga").StartSwap(w.ctx, &pb.StartSwapRequest{RequestId: "c", Tenant: "acme", Vm: "web-1", Network: "west", Ips: []string{"10.23.45.99"}})
	code(t, "to where it is", err, codes.FailedPrecondition, "already")
	h.behave(manners{upTo: func(p vnet.Place) vnet.StatusPhase {
		if !p.Undo {
			return vnet.StatusFlipped
		}
		return vnet.StatusConfirmed
	}})
	for _, to := range []string{"east", "west"} {
		s = w.swapped(&pb.StartSwapRequest{RequestId: "d" + to, Vm: "web-1", Network: to, Ips: []string{"10.23.45.101"}, LeaseBudget: durationpb.New(200 * time.Millisecond)})
		if s.Phase != "undone" || w.mapped(s.Before.Vni, vm.Port.Name) != "10.23.45.99 0, fd23:45::77 0" {
			t.Errorf("undone to %s: %v, mapped %s", to, s, w.mapped(s.Before.Vni, vm.Port.Name))
		}
		for _, a := range []string{"10.23.45.99", "fd23:45::77"} {
			ca, _ := vnet.ParseCA(a)
			row, err := store.Get[network.Holder](w.ctx, w.store, store.CAKey(vnet.VNI(s.Before.Vni), ca))
			if err != nil || row.Value.State != network.Used || row.Value.Port != vm.Port.Name {
				t.Errorf("undone to %s: %s is held by %+v, %v", to, a, row.Value, err)
			}
		}
	}
	h.behave(manners{})
	must(w.as("olga").DeleteVM(w.ctx, &pb.DeleteVMRequest{RequestId: "del", Tenant: "acme", Name: "web-1"}))(t)
	w.wait("nothing is left", func() error { return onlySwaps(before, w.rows()) })
}

// onlySwaps returns an error unless after has before's rows and records of ended swaps.
func onlySwaps(before, after map[string]string) error {
	for k := range after {
		if under(k, "/replug/swaps/") {
			delete(after, k)
		}
	}
	if d := differ(before, after); d != "" {
		return errors.New(d)
	}
	return nil
}

// S24, S28: the pool's network has both families, so that a VM of any type waits there.
func TestDualPool(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	w.dual()
	w.host("h7", 7)
	op := w.as("olga")
	must(op.SetPool(w.ctx, &pb.SetPoolRequest{RequestId: "p", Type: "ipv6", Size: new(int32(1))}))(t)
	w.wait("a pooled VM", func() error {
		p, err := op.GetPool(w.ctx, &pb.GetPoolRequest{Type: "ipv6"})
		if err == nil && p.Ready != 1 {
			err = fmt.Errorf("%v", p)
		}
		return err
	})
	must(op.CreateClaim(w.ctx, &pb.CreateClaimRequest{RequestId: "c", Tenant: "acme", Name: "web-1", Type: "ipv6", Network: "east", Ips: []string{"fd23:45::9"}}))(t)
	if vm := w.inPhase("web-1", "ready"); fmt.Sprint(vm.Port.Addrs) != "[fd23:45::9/64]" {
		t.Errorf("claimed VM %v", vm.Port)
	}
}

// What is changed of a live network reaches the places of all ports in it: routes,
// the router that they lead to, peers, subnets, the flow log.
func TestLiveNetwork(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	w.dual()
	w.host("h7", 7)
	gw := w.made(&pb.CreateVMRequest{Name: "gw", Type: "dual", Network: "east", Ips: []string{"10.23.45.9", "fd23:45::9"}}).Port.Name
	web := w.made(&pb.CreateVMRequest{Name: "web", Type: "tiny", Network: "east"}).Port.Name
	other := w.made(&pb.CreateVMRequest{Name: "other", Type: "tiny", Network: "red"}).Port.Name
	made := w.made(&pb.CreateVMRequest{Name: "router", Type: "tiny", Network: "east", Router: true}).Port.Name
	was := w.versions(store.IntentKey("h7", other))
	acme := w.as("acme")
	step := func(what string, err error, check func(gw, web vnet.Place) bool) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		w.wait(what, func() error {
			g, p := w.stored(gw).Current, w.stored(web).Current
			if !check(g, p) {
				b, _ := json.Marshal([]vnet.Place{g, p})
				return errors.New(string(b))
			}
			return nil
		})
	}
	_, err := acme.AddRoute(w.ctx, &pb.AddRouteRequest{RequestId: "a", Moniker: "east", Route: &pb.Route{Prefix: "::/0", NextHop: "fd23:45::9"}})
	step("a route", err, func(g, p vnet.Place) bool {
		return len(p.Routes) == 1 && p.Routes[0].NextHop.String() == "fd23:45::9" && g.Router && !p.Router
	})
	if !w.stored(made).Current.Router || w.stored(made).Current.Epoch == 0 {
		t.Errorf("a VM made as a router: %+v", w.stored(made).Current)
	}
	_, err = acme.AddRoute(w.ctx, &pb.AddRouteRequest{RequestId: "b", Moniker: "east", Route: &pb.Route{Prefix: "::/0", NextHop: "fd23:45::7"}})
	code(t, "the same prefix", err, codes.AlreadyExists, "remove it first")
	_, err = acme.RemoveRoute(w.ctx, &pb.RemoveRouteRequest{RequestId: "c", Moniker: "east", Prefix: "::/0"})
	step("no route", err, func(g, p vnet.Place) bool { return len(p.Routes) == 0 && !g.Router })
	must(w.as("olga").CreateNetwork(w.ctx, &pb.CreateNetworkRequest{RequestId: "n", Network: &pb.Network{
		Moniker: "north", Tenant: "acme", Subnets: []*pb.Subnet{{Prefix: "10.77.0.0/16"}}}}))(t)
	n, err := acme.Peer(w.ctx, &pb.PeerRequest{RequestId: "d", Moniker: "north", Peer: "east"})
	step("a peer", err, func(g, p vnet.Place) bool { return len(p.Routes) == 1 && uint32(p.Routes[0].Peer) == n.Vni })
	_, err = acme.AddSubnet(w.ctx, &pb.AddSubnetRequest{RequestId: "e", Moniker: "north", Subnet: &pb.Subnet{Prefix: "10.78.0.0/16"}})
	step("its second subnet", err, func(g, p vnet.Place) bool { return len(p.Routes) == 2 && len(g.Routes) == 2 })
	_, err = acme.DeleteNetwork(w.ctx, &pb.DeleteNetworkRequest{RequestId: "f", Moniker: "north"})
	code(t, "delete a peer", err, codes.FailedPrecondition, "east", "unpeer")
	_, err = acme.Peer(w.ctx, &pb.PeerRequest{RequestId: "g", Moniker: "west", Peer: "east"})
	code(t, "overlapping peers", err, codes.InvalidArgument, "overlaps")
	_, err = acme.Unpeer(w.ctx, &pb.UnpeerRequest{RequestId: "h", Moniker: "east", Peer: "north"})
	step("no peer", err, func(g, p vnet.Place) bool { return len(p.Routes) == 0 })
	_, err = acme.SetFlowLog(w.ctx, &pb.SetFlowLogRequest{RequestId: "i", Moniker: "east", On: true})
	step("the flow log", err, func(g, p vnet.Place) bool { return p.FlowLog && g.FlowLog })
	if n := w.versions(store.IntentKey("h7", other)); n != was {
		t.Errorf("the intent of a port of another network was written %d times", n-was)
	}
}

// A network that changes while a port is on its way there reaches the port as soon
// as it has flipped, and the swap goes on.
func TestLiveNetworkInMidSwap(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	h := w.host("h7", 7)
	vm := w.vm("web-1", "red", "")
	h.behave(manners{deaf: true})
	acme := w.as("acme")
	s := must(acme.StartSwap(w.ctx, &pb.StartSwapRequest{RequestId: "s", Vm: "web-1", Network: "blue", Confirm: "caller", StageBudget: durationpb.New(time.Minute)}))(t)
	for i, m := range []string{"red", "blue"} {
		must(acme.AddRoute(w.ctx, &pb.AddRouteRequest{RequestId: m, Moniker: m, Route: &pb.Route{Prefix: fmt.Sprintf("10.%d.0.0/16", 91+i), NextHop: "10.17.34.99"}}))(t)
	}
	has := func(what, prefix string) {
		t.Helper()
		w.wait(what, func() error {
			if p := w.stored(vm.Port.Name).Current; len(p.Routes) != 1 || p.Routes[0].Prefix.String() != prefix {
				return fmt.Errorf("%+v", p)
			}
			return nil
		})
	}
	has("the old network's route", "10.91.0.0/16")
	h.behave(manners{})
	h.OnIntent(w.stored(vm.Port.Name))
	has("the new network's route", "10.92.0.0/16")
	w.wait("it is there", func() error {
		_, err := acme.ConfirmSwap(w.ctx, &pb.ConfirmSwapRequest{RequestId: "yes", Id: s.Id})
		return err
	})
	if s := w.swapDone(s.Id); !s.Ok {
		t.Errorf("swap %v", s)
	}
	has("the new network's route for good", "10.92.0.0/16")
}

// VTEPs are the operator's; a tenant sees those of its networks.
func TestVTEPs(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	w.host("h7", 7)
	op, acme := w.as("olga"), w.as("acme")
	before := w.rows()
	v := &pb.VTEP{Name: "edge", Network: "red", Ip: "10.17.34.9", Pa: "172.31.99.7", Mac: "02:17:34:56:78:9a"}
	_, err := acme.AddVTEP(w.ctx, &pb.AddVTEPRequest{RequestId: "a", Vtep: v})
	code(t, "a tenant adds a VTEP", err, codes.PermissionDenied)
	must(op.AddVTEP(w.ctx, &pb.AddVTEPRequest{RequestId: "b", Tenant: "acme", Vtep: v}))(t)
	bad := &pb.VTEP{Name: "edge-2", Network: "red", Ip: "10.17.34.77", Pa: "172.31.7.2", Mac: "02:17:34:56:78:9a"}
	_, err = op.AddVTEP(w.ctx, &pb.AddVTEPRequest{RequestId: "c", Tenant: "acme", Vtep: bad})
	code(t, "a host's address", err, codes.InvalidArgument, "h7")
	if all := must(acme.ListVTEPs(w.ctx, &pb.ListVTEPsRequest{Network: "red"}))(t); len(all.Vteps) != 1 || all.Vteps[0].String() != v.String() {
		t.Errorf("list %v", all)
	}
	must(acme.AddRoute(w.ctx, &pb.AddRouteRequest{RequestId: "d", Moniker: "red", Route: &pb.Route{Prefix: "0.0.0.0/0", NextHop: "10.17.34.9"}}))(t)
	must(acme.RemoveRoute(w.ctx, &pb.RemoveRouteRequest{RequestId: "e", Moniker: "red", Prefix: "0.0.0.0/0"}))(t)
	must(op.RemoveVTEP(w.ctx, &pb.RemoveVTEPRequest{RequestId: "f", Tenant: "acme", Network: "red", Name: "edge"}))(t)
	w.wait("nothing is left but the resting address", func() error { return onlyResting(before, w.rows()) })
}

// The intents of many ports follow their network with few writes, and only once.
func TestLiveNetworkOfMany(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	const many = 230
	red, err := store.Get[network.Network](w.ctx, w.store, network.Key("acme", "red"))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < many; i += 46 {
		txn := &store.Txn{}
		for j := i; j < i+46; j++ {
			p := network.Port{Name: fmt.Sprint("p", j), Tenant: "acme", Host: "h7"}
			ca, _ := vnet.ParseCA(fmt.Sprintf("10.17.34.%d", j+2))
			in := vnet.Intent{Port: p.Name, Host: "h7", Current: red.Value.Place(p, []vnet.CA{ca}, vnet.NewEpoch(1, uint64(j+7)))}
			txn.Put(network.PortKey(p.Name), p).Add(network.PutIntent(&in))
		}
		if _, err := w.store.Commit(w.ctx, txn); err != nil {
			t.Fatal(err)
		}
	}
	txns := w.store.Txns()
	must(w.as("acme").AddRoute(w.ctx, &pb.AddRouteRequest{RequestId: "a", Moniker: "red", Route: &pb.Route{Prefix: "0.0.0.0/0", NextHop: "10.17.34.9"}}))(t)
	w.wait("all have the route", func() error {
		rows, _, err := store.List[vnet.Intent](w.ctx, w.store, store.Intents)
		routers := 0
		for _, r := range rows {
			if len(r.Value.Current.Routes) != 1 {
				return fmt.Errorf("not %s", r.Value.Port)
			}
			if r.Value.Current.Router {
				routers++
			}
		}
		if routers != 1 {
			t.Errorf("%d routers", routers)
		}
		return err
	})
	// Some may be looked at one by one when the route comes.
	if n := w.store.Txns() - txns; n > 7+renewFew {
		t.Errorf("%d writes for %d ports", n, many)
	}
	for j := range many {
		if n := w.versions(store.IntentKey("h7", fmt.Sprint("p", j))); n != 2 {
			t.Fatalf("port %d was written %d times", j, n)
		}
	}
}
