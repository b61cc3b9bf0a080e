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

// healthPrefix is under no row: what hosts find out about backends is in memory,
// and they tell it again to a new leader.
const healthPrefix = "health/"

// healths have what hosts said of backends and nobody has looked at yet: of a
// backend that flaps, only the last word counts.
type healths struct {
	mu   sync.Mutex
	news map[string]heard // by healthKey
}

type heard struct {
	host   string
	health vnet.Health
}

// healthKey has the host in it, so that none hides what another one said.
func healthKey(host string, h *vnet.Health) string {
	return fmt.Sprintf("%s%s/%08d/%s/%s", healthPrefix, host, h.VNI, h.Service, h.Member)
}

func (b *healths) put(key string, h heard) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.news == nil {
		b.news = make(map[string]heard)
	}
	b.news[key] = h
}

// again puts back what could not be written, unless there is newer news.
func (b *healths) again(key string, h heard) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, newer := b.news[key]; !newer {
		b.news[key] = h
	}
}

// take returns all news and forgets them.
func (b *healths) take() map[string]heard {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := b.news
	b.news = make(map[string]heard)
	return all
}

// Health takes in what a host found out about a backend of its own. It is written
// only if that changes the backend's row. The directory calls it; it does not wait.
func (s *Server) Health(host string, h vnet.Health) {
	r := s.reign.Load()
	if r == nil {
		return
	}
	key := healthKey(host, &h)
	r.healths.put(key, heard{host, h})
	s.feed.touch(key)
}

// observeHealth takes over into services' rows what hosts have found out.
func (r *reign) observeHealth(ctx context.Context, _ []string, _ bool) (time.Time, error) {
	var failed error
	for key, h := range r.healths.take() {
		err := r.retried(ctx, func() (*store.Txn, error) { return r.composeHealth(ctx, h) })
		if err != nil {
			r.healths.again(key, h)
			failed = errors.Join(failed, fmt.Errorf("%s: %w", strings.TrimPrefix(key, healthPrefix), err))
		}
	}
	return time.Time{}, failed
}

// composeHealth composes what a host's word changes: nothing when it is not its
// backend, or the service has no check any more.
func (r *reign) composeHealth(ctx context.Context, h heard) (*store.Txn, error) {
	row, err := store.Get[vnet.Service](ctx, r.store, store.ServiceKey(h.health.VNI, h.health.Service))
	if errors.Is(err, store.ErrNotFound) || err == nil && row.Value.Check == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	port, err := r.networks.GetPort(ctx, h.health.Member)
	if errors.Is(err, network.ErrNotFound) || err == nil && port.Value.Host != h.host {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	changed := false
	for i := range row.Value.Backends {
		if b := &row.Value.Backends[i]; b.Member == h.health.Member && b.Dead != h.health.Dead {
			b.Dead, changed = h.health.Dead, true
			r.log.Info("backend", "service", row.Value.Name, "vni", row.Value.VNI, "port", b.Member, "dead", b.Dead, "error", h.health.Error)
		}
	}
	if !changed {
		return nil, nil
	}
	return (&store.Txn{}).Unchanged(row.Key, row.Revision).Put(row.Key, row.Value), nil
}
