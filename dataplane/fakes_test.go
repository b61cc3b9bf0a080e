package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"replug/dataplane/imds"
	"replug/directory/vnet"
)

// Everything else around a port.

type worldTaps world

func (f *worldTaps) Ensure(id vnet.PortID, _ int) (int, error) {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	name := fmt.Sprintf("own%d", id)
	if w.taps[name] == 0 {
		if err := w.act("tap %d", id); err != nil {
			return 0, err
		}
		w.taps[name] = 700 + int(id)
	}
	return w.taps[name], nil
}

func (f *worldTaps) Find(name string, _ Device) (Device, error) {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.taps[name] == 0 {
		return Device{}, errNoDevice
	}
	return Device{Ifindex: w.taps[name], Tap: true}, nil
}

func (f *worldTaps) Delete(id vnet.PortID) error {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.act("delete tap %d", id); err != nil {
		return err
	}
	delete(w.taps, fmt.Sprintf("own%d", id))
	return nil
}

type worldMachines world

func (f *worldMachines) Start(_ context.Context, in vnet.Intent, _ uint16) (bool, error) {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.act("start %s", in.Machine.ID); err != nil {
		return false, err
	}
	if w.saved[in.Machine.ID] && w.unreadable {
		w.saved[in.Machine.ID] = false
		return false, errors.New("QEMU did not start: its state can't be read")
	}
	if w.saved[in.Machine.ID] {
		w.saved[in.Machine.ID], w.running[in.Machine.ID] = false, true
		return true, nil
	}
	w.running[in.Machine.ID] = !w.dies
	if g := w.guests[in.ID]; g != nil {
		g.link = true
		g.ask()
	}
	return false, nil
}

func (f *worldMachines) Save(_ context.Context, m vnet.Machine) error {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.act("save %s", m.ID); err != nil {
		return err
	}
	w.saved[m.ID], w.running[m.ID] = true, false
	return nil
}

func (f *worldMachines) Saved(m vnet.Machine) bool {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.saved[m.ID]
}

func (f *worldMachines) Stop(_ context.Context, m vnet.Machine) error {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.act("stop %s", m.ID); err != nil {
		return err
	}
	w.running[m.ID] = false
	return nil
}

func (f *worldMachines) Delete(_ context.Context, m vnet.Machine) error {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.act("delete machine %s", m.ID); err != nil {
		return err
	}
	delete(w.running, m.ID)
	return nil
}

func (f *worldMachines) Running(m vnet.Machine) bool {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.running[m.ID]
}

// Worked is all the time since the link was cut, of a guest that works.
func (f *worldMachines) Worked(vnet.Machine) time.Duration {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	if g := w.guests[23]; g != nil && g.works {
		return time.Since(g.downAt)
	}
	return 0
}

type worldLinks world

type worldLink struct {
	w  *world
	id vnet.PortID
}

func (f *worldLinks) Open(_ context.Context, in vnet.Intent, reset func()) (Link, error) {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.guests[in.ID] == nil || w.unmonitored {
		return nil, errors.New("connection refused")
	}
	w.guests[in.ID].monitor = reset
	return worldLink{w, in.ID}, nil
}

// Boots reports a guest that was reset and isn't up yet.
func (l worldLink) Boots(context.Context) (bool, error) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	g := l.w.guests[l.id]
	return g != nil && g.boots, nil
}

func (worldLink) Close() error { return nil }

func (l worldLink) Set(_ context.Context, up bool) error {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	if l.w.unmonitored {
		return errors.New("broken pipe")
	}
	g := l.w.guests[l.id]
	if g.link == up {
		return nil
	}
	if err := l.w.act("link %d %t", l.id, up); err != nil {
		return err
	}
	g.link = up
	if !up {
		g.downAt = time.Now()
		g.bounced++
	} else if time.Since(g.downAt) >= g.notices {
		g.ask()
	}
	return nil
}

// Plug is all that a guest which waits for it hears.
func (l worldLink) Plug(_ context.Context, in bool) error {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	g := l.w.guests[l.id]
	if err := l.w.act("plug %d %t", l.id, in); err != nil {
		return err
	}
	g.link = in
	if in && g.plugs {
		deaf := g.deaf
		g.deaf, g.boots = false, false
		g.ask()
		g.deaf = deaf
	}
	return nil
}

// ask gets a lease of whatever row is in force by then. The world is locked.
func (g *guest) ask() {
	if g.deaf {
		return
	}
	g.dark = time.Since(g.downAt)
	time.AfterFunc(g.asks, func() {
		g.w.mu.Lock()
		row, ok := g.w.rows[g.id]
		agent := g.w.agent
		if ok && agent != nil && g.link {
			time.AfterFunc(g.checks, func() { g.use(row.first()) })
		}
		g.w.mu.Unlock()
		if ok && agent != nil {
			if p := agent.get(g.id); p != nil {
				p.acked(ipv4, row.Epoch)
				g.ask6(p)
			}
		}
	})
}

// reboot resets the guest, which then boots for so long before it asks for a lease.
func (g *guest) reboot(boots time.Duration) {
	g.w.mu.Lock()
	g.ca, g.deaf, g.boots = vnet.CA{}, true, true
	says := g.monitor
	g.w.mu.Unlock()
	says()
	time.AfterFunc(boots, func() {
		g.w.mu.Lock()
		defer g.w.mu.Unlock()
		g.deaf = false
		g.ask()
	})
}

// use takes an address for the guest's own.
func (g *guest) use(ca vnet.CA) {
	g.w.mu.Lock()
	defer g.w.mu.Unlock()
	g.ca = ca
}

type worldProber world

func (f *worldProber) Probe(_ int, _ vnet.MAC, place *vnet.Place) error {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.probe6(place)
	for id, g := range w.guests {
		if row := w.rows[id]; row.Epoch == place.Epoch && row.first() == g.ca && g.link {
			agent := w.agent
			time.AfterFunc(100*time.Microsecond, func() {
				if p := agent.get(id); p != nil {
					p.answered(ipv4, row.Epoch)
				}
			})
		}
	}
	return nil
}

type worldDocs world

func (f *worldDocs) Publish(id vnet.PortID, e vnet.Epoch, d *vnet.Document, about imds.Guest) {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.act("publish %d %s", id, e) != nil {
		return
	}
	if row := w.rows[id]; row.Epoch != e {
		w.t.Errorf("published epoch %s while %s is in force", e, row.Epoch)
	}
	w.published[id], w.docs[id], w.slept[id] = e, d, d != nil && d.Woken != nil && len(d.Woken.Seed) == 32
	if g := w.guests[id]; g != nil && g.reports && d != nil {
		g.read(e, d)
	}
}

// read reports on a document, once an epoch.
func (g *guest) read(e vnet.Epoch, d *vnet.Document) {
	kind := vnet.ReportFinal
	if d.Partial() {
		kind = vnet.ReportPartial
	}
	time.AfterFunc(30*time.Millisecond, func() {
		g.w.mu.Lock()
		agent, again := g.w.agent, g.reported == e
		can := g.link && g.ca == g.w.rows[g.id].first()
		g.w.mu.Unlock()
		if agent == nil || again {
			return
		}
		p := agent.get(g.id)
		r := vnet.GuestReport{Epoch: e, Kind: kind, OK: !g.fails, At: time.Now(), BootID: "b-17"}
		if !can || p == nil || p.offer(g.w.t.Context(), r) != nil {
			g.read(e, d) // later
			return
		}
		g.w.mu.Lock()
		g.reported = e
		g.w.mu.Unlock()
	})
}

// Renew sends a guest that polls back to DHCP.
func (f *worldDocs) Renew(id vnet.PortID, on bool) {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	if g := w.guests[id]; g != nil && on && g.polls && w.act("renew %d", id) == nil {
		deaf := g.deaf
		g.deaf = false
		g.ask()
		g.deaf = deaf
	}
}

// Polls says of a guest what the service would have heard.
func (f *worldDocs) Polls(id vnet.PortID) bool {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	g := w.guests[id]
	return g != nil && g.heard
}

func (f *worldDocs) Withdraw(id vnet.PortID) {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.docs, id)
}

func (f *worldDocs) Forget(id vnet.PortID) {
	(*worldDocs)(f).Withdraw(id)
}

type worldRecords struct {
	w *world
	*records
}

func (r worldRecords) save(rec record) error {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	if err := r.w.act("record %s", rec.Intent.Current.Epoch); err != nil {
		return err
	}
	return r.records.save(rec)
}

type worldNetworks world

func (f *worldNetworks) Synced(v vnet.VNI) (bool, error) {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.loaded[v], w.full
}

func (f *worldNetworks) Rules(place *vnet.Place) (*Ruleset, error) {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.groups.rules(place)
}

func (f *worldNetworks) Way(place *vnet.Place, to netip.Addr) (Way, bool) {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.way, w.loaded[place.VNI] && to != lost
}

type worldResetter world

func (f *worldResetter) Guest(ifindex int, _ vnet.MAC, c Connection) error {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, row := range w.rows {
		if row.Ifindex == ifindex && row.Epoch != w.connected {
			w.t.Errorf("guest %d at epoch %s hears of a connection of %s", id, row.Epoch, w.connected)
		}
	}
	return w.act("guest hears %s is gone", c.Remote)
}

func (f *worldResetter) Peer(from vnet.PA, _ Way, c Connection) error {
	w := (*world)(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.act("%s hears from %s that %s is gone", c.Peer, from, c.Local)
}

func (f *worldNetworks) Use(vnet.PortID, ...*vnet.Place) error { return nil }

// hanging links never answer.
type hanging struct{}

func (hanging) Open(ctx context.Context, _ vnet.Intent, _ func()) (Link, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// cuts is how often the guest's link went down.
func (g *guest) cuts() int {
	g.w.mu.Lock()
	defer g.w.mu.Unlock()
	return g.bounced
}
