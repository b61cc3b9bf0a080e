package dataplane

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"replug/directory/vnet"
)

// ports holds the workers of all ports of the host, by name and by id.
type ports struct {
	rooms
	log *slog.Logger

	mu     sync.Mutex
	ctx    context.Context // of the workers; nil until run
	byName map[string]*port
	byID   map[vnet.PortID]*port
	users  map[vnet.VNI]map[*port]struct{} // the ports that need a network
	found  map[vnet.PortID]*Row            // in the datapath, not claimed by an intent yet
	seen   map[string]bool                 // since a resync began; nil: there is none
	wg     sync.WaitGroup
}

// newPorts reads back what is in force: the datapath's word is the truth.
func newPorts(r rooms, log *slog.Logger) (*ports, error) {
	p := &ports{
		rooms: r, log: log,
		byName: map[string]*port{}, byID: map[vnet.PortID]*port{}, users: map[vnet.VNI]map[*port]struct{}{},
		found: map[vnet.PortID]*Row{},
	}
	rows, err := r.datapath.Rows()
	if err != nil {
		return nil, fmt.Errorf("read back the ports in force: %w", err)
	}
	for _, row := range rows {
		p.found[row.Port] = &row
	}
	return p, nil
}

// begin serves the ports that records know, and from then on those that
// [ports.set] hands in, until ctx is done.
func (ps *ports) begin(ctx context.Context) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.ctx = ctx
	recs, err := ps.records.load()
	if err != nil {
		ps.log.Warn("some ports are served once the server is there", "err", err)
	}
	for _, rec := range recs {
		// A record without a row is of an earlier boot of the machine.
		if row := ps.found[rec.Intent.ID]; row != nil && row.MAC == rec.Intent.MAC {
			ps.start(rec.Intent, &rec)
		} else if err := ps.records.remove(rec.Intent.Port); err != nil {
			ps.log.Warn("old record stays", "err", err)
		}
	}
}

// set hands in the newest intent for a port.
func (ps *ports) set(in vnet.Intent) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.seen != nil {
		ps.seen[in.Port] = true
	}
	if in.ID == 0 || in.ID > vnet.MaxPortID {
		ps.log.Error("intent with a bad port id is ignored", "port", in.Port, "id", in.ID)
		return
	}
	p := ps.byName[in.Port]
	if p != nil && (p.id != in.ID || p.mac() != in.MAC) {
		p.remove() // another port of the same name
		p = nil
	}
	if p == nil || !p.set(in) {
		p = ps.start(in, nil)
		p.set(in)
	}
	ps.index(p, &in)
}

// start makes a port's worker. If the id belongs to another port, that one goes
// first.
func (ps *ports) start(in vnet.Intent, rec *record) *port {
	var before <-chan struct{}
	if old := ps.byID[in.ID]; old != nil {
		ps.log.Warn("port id is taken over", "id", in.ID, "from", old.name, "by", in.Port)
		old.remove()
		delete(ps.byName, old.name)
		before = old.done
	}
	row := ps.found[in.ID]
	p := newPort(ps.rooms, in, ps.log.With("port", in.Port, "vm", in.VM))
	if rec != nil {
		p.resume(*rec, row)
	}
	ps.byName[in.Port], ps.byID[in.ID] = p, p
	ps.index(p, &in)
	delete(ps.found, in.ID)
	ps.wg.Go(func() {
		defer close(p.done)
		if before != nil {
			select {
			case <-before:
			case <-ps.ctx.Done():
				return
			}
		}
		if p.adopt(ps.ctx, row) {
			p.work(ps.ctx)
		}
		ps.forget(p)
	})
	return p
}

// adopt takes over what the datapath has under the port's id. What another
// port left there is removed first: its epochs mean nothing to this one.
func (p *port) adopt(ctx context.Context, row *Row) bool {
	for {
		err := p.tryAdopt(row)
		if err == nil {
			return true
		}
		p.log.Error("leftovers of another port can't be removed", "err", err)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(retryBound):
		}
	}
}

func (p *port) tryAdopt(row *Row) error {
	p.mu.Lock()
	in := p.intent
	p.mu.Unlock()
	if row != nil && row.MAC != in.MAC {
		if row.Ifindex != 0 {
			if err := p.datapath.Detach(p.id, row.Ifindex); err != nil {
				return err
			}
		}
		if err := p.datapath.DeletePort(p.id); err != nil {
			return err
		}
		row = nil
	}
	p.row, p.roomHeld = row, row != nil // for all that is known
	return nil
}

func (p *port) mac() vnet.MAC {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.intent.MAC
}

// forget drops a port whose worker has ended.
func (ps *ports) forget(p *port) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.byID[p.id] == p {
		delete(ps.byID, p.id)
	}
	if ps.byName[p.name] == p {
		delete(ps.byName, p.name)
	}
	ps.index(p, nil)
}

// gone says that there is no intent for the port any more.
func (ps *ports) gone(name string) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p := ps.byName[name]; p != nil {
		p.remove()
	}
}

// resync begins a full list of intents; synced ends it. A port that is in none
// of them stays as it is: control takes a port down by saying so, and a store
// restored from a backup may have forgotten a VM that runs.
func (ps *ports) resync() {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.seen = map[string]bool{}
}

func (ps *ports) synced() {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.seen == nil {
		return
	}
	var orphans []string
	for name := range ps.byName {
		if !ps.seen[name] {
			orphans = append(orphans, name)
		}
	}
	slices.Sort(orphans)
	for id := range ps.found {
		orphans = append(orphans, fmt.Sprintf("id %d", id))
	}
	ps.seen = nil
	ps.metrics.orphans.Set(float64(len(orphans)))
	if len(orphans) > 0 {
		ps.log.Warn("ports run here that no intent names: they are left as they are", "ports", orphans)
	}
}

// named returns the port with a name; nil: there is none.
func (ps *ports) named(name string) *port {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.byName[name]
}

// get returns the port with an id; nil: there is none.
func (ps *ports) get(id vnet.PortID) *port {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.byID[id]
}

// kick lets all ports look again.
func (ps *ports) kick() {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.byName {
		p.kick()
	}
}

func (ps *ports) count() int {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return len(ps.byID)
}
