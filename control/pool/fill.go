package pool

import (
	"context"
	"errors"
	"time"
)

// Back-off of a pool whose VMs don't boot.
const (
	firstPause = time.Second
	maxPause   = time.Minute
	// A VM that can't even be placed costs nothing to try again, and a host that
	// comes back is an event: this is for what is no event.
	blockedPause = 5 * time.Second
)

// Fill makes one step towards full pools: it destroys what is broken or too many
// and boots what is missing. It returns when it wants to be called again if
// nothing changes before, or the zero time.
func (m *Manager) Fill(ctx context.Context) (time.Time, error) {
	pools, err := m.List(ctx)
	if err != nil {
		return time.Time{}, err
	}
	members, err := m.Fleet.Members(ctx)
	if err != nil {
		return time.Time{}, err
	}
	wanted := make(map[string]int, len(pools))
	for _, p := range pools {
		wanted[p.Type] = p.Size
	}
	have := make(map[string]int)
	for _, v := range members {
		if v.State == Broken {
			m.failed(v.Type, v.Because)
			err = errors.Join(err, m.Fleet.Destroy(ctx, v.ID))
			continue
		}
		if have[v.Type]++; v.State == Waiting {
			m.succeeded(v.Type, v.Since)
		}
	}
	err = errors.Join(err, m.shrink(ctx, members, have, wanted))
	var again time.Time
	for _, p := range pools {
		at, bootErr := m.grow(ctx, p.Type, p.Size-have[p.Type])
		if again.IsZero() || !at.IsZero() && at.Before(again) {
			again = at
		}
		err = errors.Join(err, bootErr)
	}
	return again, err
}

// shrink destroys what is too many: what still boots first, then the youngest.
func (m *Manager) shrink(ctx context.Context, members []Member, have, wanted map[string]int) error {
	var err error
	for typ, n := range have {
		spare := n - wanted[typ]
		for _, v := range members {
			if spare > 0 && v.Type == typ && v.State == Booting {
				err = errors.Join(err, m.Fleet.Destroy(ctx, v.ID))
				spare--
			}
		}
		ready := Ready(members, typ)
		for ; spare > 0 && len(ready) > 0; spare-- {
			err = errors.Join(err, m.Fleet.Destroy(ctx, ready[len(ready)-1].ID))
			ready = ready[:len(ready)-1]
		}
	}
	return err
}

// grow boots n VMs of a type, as many as may boot at once, unless the last ones
// failed a moment ago.
func (m *Manager) grow(ctx context.Context, typ string, n int) (time.Time, error) {
	if n <= 0 {
		return time.Time{}, nil
	}
	if until := m.pausedUntil(typ); until.After(m.Now()) {
		return until, nil
	}
	for range n {
		err := m.Fleet.Boot(ctx, typ)
		switch {
		case errors.Is(err, ErrBusy):
			return time.Time{}, nil
		case ctx.Err() != nil:
			return time.Time{}, ctx.Err()
		case err != nil:
			m.blocked(typ, err.Error())
			return m.Now().Add(blockedPause), nil
		}
	}
	return time.Time{}, nil
}

func (m *Manager) pausedUntil(typ string) time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b := m.state[typ]; b != nil {
		return b.until
	}
	return time.Time{}
}

// failed remembers that a VM of a type has failed to boot: the next one has to wait.
func (m *Manager) failed(typ, why string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.of(typ)
	pause := min(firstPause<<min(b.failures, 10), maxPause)
	b.failures++
	b.at, b.until, b.why = m.Now(), m.Now().Add(pause), why
}

// blocked remembers why no VM of a type can be placed.
func (m *Manager) blocked(typ, why string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.of(typ).why = why
}

func (m *Manager) of(typ string) *backoff {
	if m.state[typ] == nil {
		m.state[typ] = &backoff{}
	}
	return m.state[typ]
}

// succeeded forgets the failures before a VM began to wait.
func (m *Manager) succeeded(typ string, since time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b := m.state[typ]; b != nil && since.After(b.at) {
		delete(m.state, typ)
	}
}
