package control

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "replug/control/controlpb"
	"replug/directory/store"
	"replug/directory/vnet"
)

// pooled fills the pool of type tiny.
func (w *world) pooled(size int32) {
	w.t.Helper()
	op := w.as("olga")
	must(op.SetPool(w.ctx, &pb.SetPoolRequest{RequestId: id("pool", size), Type: "tiny", Size: &size}))(w.t)
	w.ready(size)
}

func (w *world) ready(size int32) {
	w.t.Helper()
	op := w.as("olga")
	w.wait("pool", func() error {
		p, err := op.GetPool(w.ctx, &pb.GetPoolRequest{Type: "tiny"})
		if err == nil && p.Ready != size {
			err = fmt.Errorf("%d of %d ready, %d boot; %s", p.Ready, size, p.Booting, p.Error)
		}
		return err
	})
}

func (w *world) claimed(name, network, ip string) *pb.Claim {
	w.t.Helper()
	acme := w.as("acme")
	c := must(acme.CreateClaim(w.ctx, &pb.CreateClaimRequest{
		RequestId: id("claim", name), Name: name, Type: "tiny", Network: network, Ip: ip,
		Settings: &pb.Settings{Hostname: name + "-host", User: "alice", SshKeys: []string{"ssh-ed25519 AAAA alice"}, PasswordHash: "$6$saltsalt$aB3./xyz"},
	}))(w.t)
	return w.claimDone(c.Id)
}

// claimDone watches a claim to its end.
func (w *world) claimDone(id string) *pb.Claim {
	w.t.Helper()
	s := must(w.as("acme").WatchClaim(w.ctx, &pb.GetClaimRequest{Id: id}))(w.t)
	var last *pb.Claim
	for {
		c, err := s.Recv()
		if err != nil {
			break
		}
		last = c
	}
	if last == nil || last.Phase != "ready" && last.Phase != "failed" {
		w.t.Fatalf("claim ended as %v", last)
	}
	return last
}

// S20, S28, S29, S39, S41, S46: the pool keeps its number, in a network of its own, by
// partial success, without rules and services; and takes its VMs from nobody.
func TestPoolFills(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	h := w.host("h7", 7)
	w.pooled(5)
	vms := must(w.as("olga").ListVMs(w.ctx, &pb.ListVMsRequest{Tenant: "platform"}))(t).Vms
	for _, vm := range vms {
		in, _ := h.intent(vm.Port.Name)
		if vm.Phase != "pooled" || vm.Guest.Kind != "partial" || !in.Current.Isolated || !in.Current.Document.Partial() {
			t.Errorf("VM %v, place %+v", vm, in.Current)
		}
	}
	_, err := w.as("olga").CreateService(w.ctx, &pb.CreateServiceRequest{RequestId: "vip", Service: &pb.Service{
		Tenant: "platform", Network: "placeholder", Name: "web", Ip: "10.0.0.9", Port: 443, Protocol: "tcp"}})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a service in the pool's network: %v", err)
	}
	_, err = w.as("olga").CreateGroup(w.ctx, &pb.CreateGroupRequest{RequestId: "group", Tenant: "platform", Network: "placeholder", Name: "web"})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a group in the pool's network: %v", err)
	}
	must(w.as("olga").DeleteVM(w.ctx, &pb.DeleteVMRequest{RequestId: "lost", Name: vms[3].Id}))(t)
	w.ready(5)
	w.pooled(2)
	w.pooled(3)
	booting := 0
	for _, in := range h.seen {
		if in.Machine != nil {
			booting++
		}
	}
	if booting < 6 {
		t.Errorf("only %d intents", booting)
	}
}

// At most so many VMs boot at once on a host; those that fail are destroyed, and
// not made again in a hurry.
func TestPoolIsPatient(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.BootBudget = 2 * time.Second })
	w.furnish()
	h := w.host("h7", 7)
	var mu sync.Mutex
	most, now := 0, make(map[string]bool)
	h.behave(manners{
		upTo: func(vnet.Place) vnet.StatusPhase { return vnet.StatusLeased },
		hook: func(p vnet.StatusPhase, port string) {
			mu.Lock()
			defer mu.Unlock()
			now[port] = p != vnet.StatusGone
			n := 0
			for _, up := range now {
				if up {
					n++
				}
			}
			most = max(most, n)
		},
	})
	op := w.as("olga")
	must(op.SetPool(w.ctx, &pb.SetPoolRequest{RequestId: "p", Type: "tiny", Size: new(int32(7))}))(t)
	w.wait("the pool's reason", func() error {
		p, err := op.GetPool(w.ctx, &pb.GetPoolRequest{Type: "tiny"})
		if err == nil && !strings.Contains(p.Error, "no report of success") {
			err = fmt.Errorf("error is %q", p.Error)
		}
		return err
	})
	h.behave(manners{})
	w.ready(7)
	mu.Lock()
	defer mu.Unlock()
	if most > DefaultBootsPerHost {
		t.Errorf("%d VMs booted at once", most)
	}
}

// S50, S51, S53, S54, S55, S60, S61, S80: a pooled VM becomes the tenant's: its network,
// address, name, disks; MAC and physical address stay; nothing reboots.
func TestClaimFromPool(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	h := w.host("h7", 7)
	w.pooled(2)
	pool := must(w.as("olga").ListVMs(w.ctx, &pb.ListVMsRequest{Tenant: "platform"}))(t).Vms
	c := w.claimed("web-1", "red", "10.17.34.51")
	if c.Phase != "ready" || c.Source != "pool" || c.Tries != 1 || c.Note != "" || c.Swap == "" {
		t.Fatalf("claim %v", c)
	}
	vm := must(w.as("acme").GetVM(w.ctx, &pb.GetVMRequest{Name: "web-1"}))(t)
	var was *pb.VM
	for _, p := range pool {
		if p.Id == vm.Id {
			was = p
		}
	}
	if was == nil {
		t.Fatalf("claimed %s, the pool had %v", vm.Id, pool)
	}
	if vm.Port.Mac != was.Port.Mac || vm.Port.Pa != was.Port.Pa || vm.Guest.BootId != was.Guest.BootId {
		t.Errorf("changed: %v, was %v", vm.Port, was.Port)
	}
	if vm.Tenant != "acme" || vm.Phase != "ready" || vm.Port.Network != "red" || vm.Port.Addrs[0] != "10.17.34.51/24" || vm.Port.Tenant != "acme" ||
		vm.Disks[0].Tenant != "acme" || vm.Settings.Hostname != "web-1-host" || vm.Guest.Kind != "final" || vm.Guest.Hostname != "web-1-host" {
		t.Errorf("VM %v", vm)
	}
	in, _ := h.intent(vm.Port.Name)
	if c.View.Settings.PasswordHash != "" || vm.Settings.PasswordHash != "" {
		t.Errorf("the API gives a password's hash out: claim %v, VM %v", c.View.Settings, vm.Settings)
	}
	if d := in.Current.Document; d.Partial() || d.User != "alice" || d.PasswordHash == "" || in.Current.Isolated {
		t.Errorf("place %+v, document %+v", in.Current, d)
	}
	w.ready(2) // another one has taken its place
	swap := must(w.as("acme").GetSwap(w.ctx, &pb.GetSwapRequest{Id: c.Swap}))(t)
	if !swap.Ok || swap.Claim != c.Id || swap.Before.Network != "placeholder" {
		t.Errorf("swap %v", swap)
	}
	must(w.as("acme").DeleteVM(w.ctx, &pb.DeleteVMRequest{RequestId: "d", Name: "web-1"}))(t)
	w.ready(2)
}

// The pool makes up for a claimed VM once the claim is over, not beside it.
func TestPoolWaitsForClaim(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	h := w.host("h7", 7)
	w.pooled(2)
	var boots atomic.Int32
	h.behave(manners{
		upTo: func(p vnet.Place) vnet.StatusPhase {
			if p.Isolated {
				boots.Add(1)
				return vnet.StatusConfirmed
			}
			return vnet.StatusPublished // the customer's guest takes its time
		},
	})
	op, acme := w.as("olga"), w.as("acme")
	c := must(acme.CreateClaim(w.ctx, &pb.CreateClaimRequest{RequestId: "c", Name: "web-1", Type: "tiny", Network: "red", Ip: "10.17.34.51",
		Settings: &pb.Settings{Hostname: "web-1-host"}}))(t)
	w.wait("the claim to be under way", func() error {
		vm, err := acme.GetVM(w.ctx, &pb.GetVMRequest{Name: "web-1"})
		if err == nil && vm.Port.Status != "published" {
			err = fmt.Errorf("its port is %s", vm.Port.Status)
		}
		return err
	})
	for size := range int32(20) { // each one makes the pool look
		must(op.SetPool(w.ctx, &pb.SetPoolRequest{RequestId: fmt.Sprint("look", size), Type: "tiny", Size: new(int32(2 + size%2))}))(t)
	}
	if n := boots.Load(); n > 0 {
		t.Errorf("%d VMs booted beside the claim", n)
	}
	h.behave(manners{})
	if _, err := acme.CancelSwap(w.ctx, &pb.CancelSwapRequest{RequestId: "x", Id: must(acme.GetClaim(w.ctx, &pb.GetClaimRequest{Id: c.Id}))(t).Swap}); err != nil {
		t.Fatal(err)
	}
	w.claimDone(c.Id)
	w.ready(3)
}

// S49: without a pooled VM one is made from scratch, and the claim says so.
func TestClaimFromScratch(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	w.host("h7", 7)
	c := w.claimed("web-1", "red", "10.17.34.51")
	if c.Phase != "ready" || c.Source != "scratch" || !strings.Contains(c.Note, "no pooled VM of type tiny") || c.View.Phase != "ready" || c.View.Tenant != "acme" {
		t.Errorf("claim %v", c)
	}
}

// No VM is handed out twice, however many ask at once.
func TestClaimsAtOnce(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	w.host("h7", 7)
	w.pooled(5)
	claims := make([]*pb.Claim, 5)
	var all sync.WaitGroup
	for i := range claims {
		all.Go(func() { claims[i] = w.claimed(fmt.Sprintf("web-%d", i), "red", "") })
	}
	all.Wait()
	vms, addrs := make(map[string]bool), make(map[string]bool)
	for _, c := range claims {
		if c.Phase != "ready" || c.Source != "pool" {
			t.Errorf("claim %v", c)
			continue
		}
		vms[c.Vm], addrs[c.View.Port.Addrs[0]] = true, true
	}
	if len(vms) != len(claims) || len(addrs) != len(claims) {
		t.Errorf("VMs %v, addresses %v", vms, addrs)
	}
}

// A claimed VM whose guest fails is destroyed and another one taken, with the
// same name and address; after three of them the claim fails.
func TestClaimServedAgain(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	h := w.host("h7", 7)
	w.pooled(2)
	var mu sync.Mutex
	bad := 1
	h.behave(manners{guest: func(p vnet.Place, g *vnet.GuestReport) {
		mu.Lock()
		defer mu.Unlock()
		if g.Kind == vnet.ReportFinal && bad > 0 {
			bad--
			g.OK, g.Error = false, "useradd: no space left"
		}
	}})
	c := w.claimed("web-1", "red", "10.17.34.51")
	if c.Phase != "ready" || c.Tries != 2 || !strings.Contains(c.Note, "useradd") || c.View.Port.Addrs[0] != "10.17.34.51/24" {
		t.Fatalf("claim %v", c)
	}
	w.ready(2)
	mu.Lock()
	bad = 1000
	mu.Unlock()
	c = w.claimed("web-2", "red", "10.17.34.52")
	if c.Phase != "failed" || c.Tries != 3 || !strings.Contains(c.Error, "useradd") {
		t.Errorf("claim %v", c)
	}
	w.wait("the failed VMs are gone", func() error {
		vms, err := w.as("olga").ListVMs(w.ctx, &pb.ListVMsRequest{Tenant: "acme"})
		if err == nil && len(vms.Vms) != 1 {
			err = fmt.Errorf("%d VMs", len(vms.Vms))
		}
		return err
	})
}

// A host that refuses to stage ends the first try with no impact on anybody; a
// claim on a dead host takes a VM elsewhere.
func TestClaimAvoidsDeadHost(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	h7 := w.host("h7", 7)
	w.pooled(1)
	h7.halt()
	w.wait("h7 is gone", func() error {
		hosts, err := w.as("olga").ListHosts(w.ctx, &pb.ListHostsRequest{})
		if err == nil && hosts.Hosts[0].Connected {
			err = fmt.Errorf("connected")
		}
		return err
	})
	w.host("h9", 9)
	c := w.claimed("web-1", "red", "")
	if c.Phase != "ready" || c.View.Host != "h9" || c.Source != "scratch" {
		t.Errorf("claim %v", c)
	}
}

// A claim that comes right after a restart waits for the hosts to come back: the
// pool's VMs are on them.
func TestClaimAfterRestart(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Settle = 2 * patience })
	w.furnish()
	h := w.host("h7", 7)
	w.pooled(1)
	h.halt()
	w.restart()
	acme := w.as("acme")
	c := must(acme.CreateClaim(w.ctx, &pb.CreateClaimRequest{RequestId: "c", Name: "web-1", Type: "tiny", Network: "red"}))(t)
	if c.Phase != "accepted" {
		t.Errorf("claim without a host: %v", c)
	}
	w.host("h7", 7)
	if c = w.claimDone(c.Id); c.Phase != "ready" || c.Source != "pool" {
		t.Errorf("claim %v", c)
	}
}

// A reading is a store's client that tells of each row before it is read.
type reading struct {
	clientv3.KV
	before atomic.Pointer[func(key string)]
}

func (r *reading) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if f := r.before.Load(); f != nil {
		(*f)(key)
	}
	return r.KV.Get(ctx, key, opts...)
}

// The pool takes a VM back between the two looks that a claim has at it: the claim
// is served by another one.
func TestClaimOutlivesItsVM(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	w.stop()
	reads := &reading{}
	w.change = func(*Config) { // of the next server, before it reads anything
		client := w.db.Client()
		reads.KV, client.KV = client.KV, reads
	}
	w.start()
	w.host("h7", 7)
	w.pooled(2)
	r := w.srv.reign.Load()
	var lost atomic.Pointer[string]
	look := func(key string) {
		port, isPort := strings.CutPrefix(key, store.IntentKey("h7", ""))
		if !isPort {
			return
		}
		id, _, _ := strings.Cut(port, ".")
		r.takingMu.Lock()
		claimed := r.taking[id]
		r.takingMu.Unlock()
		if claimed && lost.CompareAndSwap(nil, &id) {
			if err := (fleet{r}).Destroy(w.ctx, id); err != nil {
				t.Errorf("take VM %s back: %v", id, err)
			}
		}
	}
	reads.before.Store(&look)
	c := w.claimed("web-1", "red", "10.17.34.51")
	if lost.Load() == nil {
		t.Fatal("the claim's VM was not taken back")
	}
	if c.Phase != "ready" || c.Source != "pool" || c.Vm == *lost.Load() || c.Tries != 1 {
		t.Errorf("VM %s was taken back, the claim is %v", *lost.Load(), c)
	}
}

// A network of large frames gets VMs of the hosts whose underlay carries them, be
// it that others have more room, or VMs that wait longer.
func TestHostForMTU(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	op := w.as("olga")
	must(op.CreateNetwork(w.ctx, &pb.CreateNetworkRequest{RequestId: "jumbo", Network: &pb.Network{
		Moniker: "jumbo", Tenant: "acme", Mtu: 8000, Subnets: []*pb.Subnet{{Prefix: "10.17.34.0/24"}}}}))(t)
	narrow, wide := hostInfo("h7", 7), hostInfo("h9", 9)
	narrow.MTU, wide.MTU = 1450, 8950
	narrow.Memory += 32 // less than a VM takes: so the first goes here, the second there
	w.hostOf(narrow, 3)
	create := func(name, host string) (*pb.VM, error) {
		return op.CreateVM(w.ctx, &pb.CreateVMRequest{RequestId: id(name, host), Tenant: "acme", Name: name, Type: "tiny", Network: "jumbo", Host: host})
	}
	_, err := create("web-1", "")
	code(t, "no host carries it", err, codes.ResourceExhausted, "host h7", "1450", "8000", "jumbo")
	w.pooled(1)
	w.hostOf(wide, 3)
	w.pooled(2)
	_, err = create("web-1", "h7")
	code(t, "that host doesn't carry it", err, codes.ResourceExhausted, "host h7", "1450", "8000", "jumbo")
	if vm := must(create("web-1", ""))(t); vm.Host != "h9" {
		t.Errorf("VM on host %s", vm.Host)
	}
	if c := w.claimed("web-2", "jumbo", ""); c.Phase != "ready" || c.Source != "pool" || c.View.Host != "h9" {
		t.Errorf("claim %v", c)
	}
}
