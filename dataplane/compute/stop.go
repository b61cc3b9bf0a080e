package compute

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Stop ends the machine: see [Driver].
func (q *QEMU) Stop(ctx context.Context, id string, graceful bool) error {
	if !word.MatchString(id) {
		return nil // there is no such machine
	}
	m, unlock := q.lock(id)
	defer unlock()
	return q.stop(ctx, id, m, graceful)
}

func (q *QEMU) stop(ctx context.Context, id string, m *machine, graceful bool) error {
	p := q.running(m)
	if p == nil {
		return nil
	}
	p.asked.Store(true)
	if q.askToEnd(ctx, id, p, graceful) {
		return nil
	}
	if ctx.Err() != nil {
		p.asked.Store(false)
		return fmt.Errorf("stop machine %s: %w", id, ctx.Err())
	}
	if err := q.end(p); err != nil {
		return fmt.Errorf("stop machine %s: %w", id, err)
	}
	return nil
}

// askToEnd presses the power button, then tells QEMU to quit, and reports whether
// it is gone.
func (q *QEMU) askToEnd(ctx context.Context, id string, p *process, graceful bool) bool {
	open, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	mon, err := q.c.Open(open, filepath.Join(q.dir(id), powerSocket))
	if err != nil {
		return false
	}
	defer mon.Close()
	if graceful && mon.Powerdown(open) == nil && gone(ctx, p, q.c.Grace) {
		return true
	}
	quit, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_ = mon.Quit(quit) // whether it did shows below
	return gone(quit, p, patience)
}

// end kills a process, and returns when it is gone.
func (q *QEMU) end(p *process) error {
	if err := p.kill(); err != nil {
		return fmt.Errorf("kill process %d: %w", p.pid, err)
	}
	if !gone(context.Background(), p, patience) {
		return fmt.Errorf("process %d was killed and is still there: it waits for a disk?", p.pid)
	}
	return nil
}

func gone(ctx context.Context, p *process, in time.Duration) bool {
	select {
	case <-p.exited:
		return true
	default:
	}
	after := time.NewTimer(in)
	defer after.Stop()
	select {
	case <-p.exited:
		return true
	case <-after.C:
	case <-ctx.Done():
	}
	return false
}

// Delete removes the machine: see [Driver].
func (q *QEMU) Delete(ctx context.Context, id string) error {
	if !word.MatchString(id) {
		return nil
	}
	m, unlock := q.lock(id)
	defer unlock()
	if err := q.stop(ctx, id, m, false); err != nil {
		return err
	}
	if err := os.RemoveAll(q.dir(id)); err != nil {
		return fmt.Errorf("delete machine %s: %w", id, err)
	}
	q.mu.Lock()
	delete(q.told, id)
	q.mu.Unlock()
	return nil
}
