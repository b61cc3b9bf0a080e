package demo

import (
	"context"
	"fmt"
	"strings"
	"time"

	pb "replug/control/controlpb"
	"replug/tests/lab"
)

const pooled = 2

// pool fills the pool and reads, inside each VM, which boot this is.
func (p *player) pool(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.world.cast.budget)
	defer cancel()
	w := p.world
	if _, err := w.cluster.CLI(ctx, "pool", "set", kind, "--size", fmt.Sprint(pooled)); err != nil {
		return err
	}
	if err := p.filled(ctx); err != nil {
		return err
	}
	out, err := w.cluster.CLI(ctx, "vm", "list", "--tenant", "platform")
	if err != nil {
		return err
	}
	p.print.quote("replug vm list --tenant platform", string(out))
	w.watched = newWatched(w)
	return w.watched.remember(ctx)
}

// filled waits until the pool has all its VMs ready.
func (p *player) filled(ctx context.Context) error {
	conn, err := p.world.cluster.Conn()
	if err != nil {
		return err
	}
	shown := -1
	return lab.Until(ctx, "the pool to fill", func() error {
		pool, err := pb.NewPoolsClient(conn).GetPool(ctx, &pb.GetPoolRequest{Type: kind})
		if err != nil {
			return err
		}
		if int(pool.Ready) != shown {
			shown = int(pool.Ready)
			p.print.line("%d of %d have reported partial success and wait %s", pool.Ready, pooled, pool.Error)
		}
		if pool.Ready < pooled {
			return fmt.Errorf("%d of %d are ready %s", pool.Ready, pooled, pool.Error)
		}
		return nil
	})
}

// scratch makes a VM without the pool, for comparison, and removes it.
func (p *player) scratch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.world.cast.budget)
	defer cancel()
	begin := time.Now()
	out, err := p.world.cluster.CLI(ctx, "vm", "create", "plain-1", "--tenant", tenant, "--type", kind, "--network", "red",
		"--ip", "10.0.0.70", "--hostname", "plain-1", "--user", "ann", "--wait", "--timeout", p.world.cast.budget.String(), "-o", "json")
	if err != nil {
		return err
	}
	p.result.ScratchMSToConfirmed = ms(time.Since(begin))
	if !strings.Contains(string(out), `"plain-1"`) {
		return fmt.Errorf("the VM is not there: %s", out)
	}
	p.print.line("plain-1 booted and was confirmed after %.0f ms", p.result.ScratchMSToConfirmed)
	_, err = p.world.cluster.CLI(ctx, "vm", "delete", "plain-1", "--tenant", tenant)
	return err
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
