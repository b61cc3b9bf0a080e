package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"replug/control/network"
	"replug/directory/store"
	"replug/directory/vnet"
)

// statusPrefix is under no row: statuses are in memory, hosts tell them again.
const statusPrefix = "status/"

// A board has what hosts said of their ports last.
type board struct {
	mu   sync.Mutex
	last map[string]*posted // by port
}

type posted struct {
	status vnet.Status
	fresh  bool // not yet looked at by the loop
}

func newBoard() *board { return &board{last: make(map[string]*posted)} }

func (b *board) put(s vnet.Status, fresh bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last[s.Port] = &posted{s, fresh}
}

func (b *board) get(port string) (vnet.Status, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.last[port]
	if p == nil {
		return vnet.Status{}, false
	}
	return p.status, true
}

// take returns the status of a port once.
func (b *board) take(port string) (vnet.Status, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.last[port]
	if p == nil || !p.fresh {
		return vnet.Status{}, false
	}
	p.fresh = false
	return p.status, true
}

// again makes the status of a port be looked at once more.
func (b *board) again(port string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p := b.last[port]; p != nil {
		p.fresh = true
	}
}

func (b *board) ports() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	ports := make([]string, 0, len(b.last))
	for p := range b.last {
		ports = append(ports, p)
	}
	return ports
}

func (b *board) drop(port string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.last, port)
}

// observe takes over into the rows what hosts have said.
func (r *reign) observe(ctx context.Context, keys []string, all bool) (time.Time, error) {
	ports := make([]string, 0, len(keys))
	for _, k := range keys {
		ports = append(ports, strings.TrimPrefix(k, statusPrefix))
	}
	if all {
		ports = r.board.ports()
	}
	var failed error
	for _, p := range ports {
		s, ok := r.board.take(p)
		if !ok {
			continue
		}
		if err := r.takeIn(ctx, s); err != nil {
			r.board.again(p)
			failed = errors.Join(failed, fmt.Errorf("port %s: %w", p, err))
		}
	}
	return time.Time{}, failed
}

// takeIn writes what a status changes of a VM, a claim or a port.
func (r *reign) takeIn(ctx context.Context, s vnet.Status) error {
	gone := false
	err := r.retried(ctx, func() (*store.Txn, error) {
		in, err := r.networks.GetIntent(ctx, s.Port)
		if errors.Is(err, network.ErrNotFound) {
			gone = true
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		txn := &store.Txn{}
		switch {
		case in.Value.Gone && s.Phase == vnet.StatusGone:
			gone = true
			return txn, r.composeGone(ctx, in, txn)
		case in.Value.VM != "" && !in.Value.Gone:
			return txn, r.observeVM(ctx, in, s, txn)
		}
		return nil, nil
	})
	if gone && err == nil {
		r.board.drop(s.Port)
	}
	return err
}
