package guests

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"

	pb "replug/control/controlpb"
	"replug/tests/cluster"
	"replug/tests/lab"
)

// The stock Debian image waits in a pool, is claimed by its own cloud-init, and is
// swapped with nobody's help but that of its own DHCP client.
const (
	claimed = "cloud-init, claimed from the pool"
	swapped = "cloud-init's guest, swapped"
)

// pooled is how many VMs wait: two boot at once, and one is claimed.
const pooled = 2

// bootTime is what a VM may take to the pool without KVM.
const bootTime = 10 * time.Minute

// Stock claims so many VMs, and swaps the last one of them as often, in a world whose
// cluster has the stock image. It calls rests when the last one is claimed and no other
// boots.
func (w *World) Stock(ctx context.Context, runs int, rests func()) (rows []Row, err error) {
	if _, err := pb.NewVMTypesClient(w.conn).CreateVMType(ctx, &pb.CreateVMTypeRequest{RequestId: w.id(),
		Type: &pb.VMType{Name: "debian", Image: cluster.Image, Cpus: 1, MemoryMib: 384}}); err != nil {
		return nil, err
	}
	if err := w.pool(ctx, min(pooled, runs)); err != nil {
		return nil, err
	}
	claims, swaps := tally{name: claimed}, tally{name: swapped}
	var vm *pb.VM
	for more := runs - 1; more >= 0; more-- {
		if vm != nil {
			if _, err := pb.NewVMsClient(w.conn).DeleteVM(ctx, &pb.DeleteVMRequest{RequestId: w.id(), Tenant: tenant, Name: vm.Name}); err != nil {
				return nil, err
			}
		}
		if vm, err = w.claimStock(ctx, &claims); err != nil {
			return nil, fmt.Errorf("%s: %w", claimed, err)
		}
		if err := w.pool(ctx, min(pooled, more)); err != nil {
			return nil, err
		}
	}
	rests()
	if err := w.booted(ctx, vm); err != nil {
		return nil, err
	}
	for i := range runs {
		if err := w.swapStock(ctx, vm, []string{"blue", "red"}[i%2], &swaps); err != nil {
			return nil, fmt.Errorf("%s: %w", swapped, err)
		}
		time.Sleep(apart)
	}
	return []Row{claims.row(w.Family), swaps.row(w.Family)}, nil
}

// pool makes so many VMs wait.
func (w *World) pool(ctx context.Context, size int) error {
	_, err := pb.NewPoolsClient(w.conn).SetPool(ctx, &pb.SetPoolRequest{RequestId: w.id(), Type: "debian", Size: new(int32(size))})
	return err
}

// booted waits for the end of the VM's boot. It reports early in it, when nobody in it
// heeds the link yet.
func (w *World) booted(ctx context.Context, vm *pb.VM) error {
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	_, err := lab.GuestExec(ctx, w.exec(vm), "until [ -e /var/lib/cloud/instance/boot-finished ]; do sleep 0.5; done")
	if err != nil {
		return fmt.Errorf("wait for the end of the boot: %w", err)
	}
	return nil
}

// A tally is what becomes of a line's runs.
type tally struct {
	name string
	took []float64 // ms
	by   map[string]int
	left bool // an old address
}

func (t *tally) add(took float64, rung string, left bool) {
	if t.by == nil {
		t.by = map[string]int{}
	}
	t.took, t.left = append(t.took, took), t.left || left
	t.by[rung]++
}

func (t *tally) row(f Family) Row {
	r := Row{Client: t.name, Family: f.Name, Follows: true, Runs: len(t.took), OldAddressLeft: t.left, P50: percentile(t.took, 50), P99: percentile(t.took, 99)}
	for rung, n := range t.by {
		if n > t.by[r.Rung] {
			r.Rung = rung
		}
	}
	return r
}

// claimStock waits for a VM in the pool and claims it: from the call until
// cloud-init has said for the second time that it is ready.
func (w *World) claimStock(ctx context.Context, t *tally) (*pb.VM, error) {
	waits, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	if err := lab.Until(waits, "a VM in the pool", func() error { return w.waiting(waits) }); err != nil {
		return nil, err
	}
	client, name := pb.NewClaimsClient(w.conn), fmt.Sprint("web-", w.used)
	begin := time.Now()
	claim, err := client.CreateClaim(ctx, &pb.CreateClaimRequest{RequestId: w.id(), Tenant: tenant, Name: name, Type: "debian", Network: w.network("red"),
		Settings: &pb.Settings{User: "ann", SshKeys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMOnH3gkPF6Z0JqpXoyMwfzgTzxiiJqYHBvyOEhCbfLK ann"}}})
	if err != nil {
		return nil, err
	}
	stream, err := client.WatchClaim(ctx, &pb.GetClaimRequest{Id: claim.Id})
	if err != nil {
		return nil, err
	}
	for claim.Phase != "ready" {
		if claim, err = stream.Recv(); err != nil {
			return nil, err
		}
		if claim.Phase == "failed" {
			return nil, fmt.Errorf("claim %s: %s", claim.Id, claim.Error)
		}
	}
	took := float64(time.Since(begin).Microseconds()) / 1000
	if claim.Source != "pool" {
		return nil, fmt.Errorf("claim %s was served from %s: %s", claim.Id, claim.Source, claim.Note)
	}
	swap, err := pb.NewSwapsClient(w.conn).GetSwap(ctx, &pb.GetSwapRequest{Id: claim.Swap})
	if err != nil {
		return nil, err
	}
	left, err := w.keeps(ctx, claim.View, swap)
	t.add(took, swap.Rung, left)
	return claim.View, err
}

func (w *World) waiting(ctx context.Context) error {
	all, err := pb.NewVMsClient(w.conn).ListVMs(ctx, &pb.ListVMsRequest{Tenant: "platform"})
	if err == nil && !slices.ContainsFunc(all.Vms, func(vm *pb.VM) bool { return vm.Phase == "pooled" }) {
		err = fmt.Errorf("none of %d waits", len(all.Vms))
	}
	return err
}

// swapStock moves the VM to the network of a colour, until it is seen there.
func (w *World) swapStock(ctx context.Context, vm *pb.VM, to string, t *tally) error {
	client := pb.NewSwapsClient(w.conn)
	begin := time.Now()
	swap, err := client.StartSwap(ctx, &pb.StartSwapRequest{RequestId: w.id(), Tenant: tenant, Vm: vm.Name, Network: w.network(to), Confirm: "lease", Trigger: "bounce"})
	if err != nil {
		return err
	}
	stream, err := client.WatchSwap(ctx, &pb.GetSwapRequest{Id: swap.Id})
	if err != nil {
		return err
	}
	for !swap.Done {
		if swap, err = stream.Recv(); err != nil {
			return err
		}
	}
	if !swap.Ok {
		return fmt.Errorf("%s: %s", swap.Error, hops(swap))
	}
	took := math.NaN()
	for _, h := range swap.Timeline {
		if h.Name == "seen" {
			took = float64(h.At.AsTime().Sub(begin).Microseconds()) / 1000
		}
	}
	left, err := w.keeps(ctx, vm, swap)
	t.add(took, swap.Rung, left)
	return err
}

// exec returns the path of the VM's exec channel.
func (w *World) exec(vm *pb.VM) string {
	return filepath.Join(w.Cluster.Lab.Host(1).Dir(), "state", "vms", vm.Id, "exec.sock")
}

// keeps looks inside the VM whether it has an address that it had before the swap, as
// long as a client may need to take it away.
func (w *World) keeps(ctx context.Context, vm *pb.VM, swap *pb.Swap) (bool, error) {
	old, err := parse(swap.Before.Addrs)
	if err != nil {
		return false, err
	}
	for end := time.Now().Add(8 * time.Second); ; time.Sleep(time.Second) {
		out, err := lab.GuestExec(ctx, w.exec(vm), "ip -o addr show scope global | awk '{print $4}'")
		if err != nil {
			return false, err
		}
		has := func(a string) bool {
			return slices.ContainsFunc(strings.Fields(out), func(p string) bool { return strings.HasPrefix(p, a+"/") })
		}
		left := false
		for _, a := range old {
			left = left || has(a.String())
		}
		if !left || time.Now().After(end) {
			return left, nil
		}
	}
}
