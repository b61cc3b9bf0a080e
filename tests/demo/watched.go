package demo

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	pb "replug/control/controlpb"
	"replug/tests/lab"
)

// A watched VM is looked at from inside, through its serial console, not by
// what the control plane believes of it.
type watched struct {
	world *world
	views map[string]view // by VM id
}

// A view is what a guest says of itself.
type view struct {
	boot, hostname, mac string
	addr                netip.Addr
}

func newWatched(w *world) *watched { return &watched{world: w, views: make(map[string]view)} }

// remember looks at every VM of the pool.
func (o *watched) remember(ctx context.Context) error {
	conn, err := o.world.cluster.Conn()
	if err != nil {
		return err
	}
	r, err := pb.NewVMsClient(conn).ListVMs(ctx, &pb.ListVMsRequest{Tenant: "platform"})
	if err != nil {
		return err
	}
	for _, vm := range r.Vms {
		if o.views[vm.Id], err = o.look(ctx, vm.Id); err != nil {
			return err
		}
	}
	return nil
}

// look asks the guest who it is.
func (o *watched) look(ctx context.Context, id string) (view, error) {
	out, err := o.exec(ctx, id, "cat /proc/sys/kernel/random/boot_id; hostname; cat /sys/class/net/eth0/address; ip -4 -o addr show dev eth0")
	if err != nil {
		return view{}, err
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) < 4 {
		return view{}, fmt.Errorf("guest %s says too little of itself: %q", id, out)
	}
	fields := strings.Fields(lines[3])
	for i, f := range fields {
		if f == "inet" && i+1 < len(fields) {
			p, err := netip.ParsePrefix(fields[i+1])
			return view{boot: strings.TrimSpace(lines[0]), hostname: strings.TrimSpace(lines[1]), mac: strings.TrimSpace(lines[2]), addr: p.Addr()}, err
		}
	}
	return view{}, fmt.Errorf("guest %s has no address: %q", id, out)
}

// exec runs a shell command inside the guest.
func (o *watched) exec(ctx context.Context, id, command string) (string, error) {
	return o.within(ctx, o.world.cast.patience, id, command)
}

// within runs a shell command that may take so long.
func (o *watched) within(ctx context.Context, budget time.Duration, id, command string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	sock := filepath.Join(o.world.lab.Host(1).Dir(), "state", "vms", id, "exec.sock")
	return lab.GuestExec(ctx, sock, command)
}
