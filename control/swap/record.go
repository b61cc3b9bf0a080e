// Package swap moves a running port from one virtual network to another, and back
// when it does not arrive. It is one table of phases and one record a swap; all
// that must survive is written in five transactions, and a new leader goes on from
// the record. It knows nothing of VMs, networks and pools: what their managers own
// they compose into its transactions ([Objects]). It never calls a host: it writes
// intents, and is told statuses.
package swap

import (
	"slices"
	"strings"
	"time"

	"replug/directory/store"
	"replug/directory/vnet"
)

// A Request asks for a swap. Objects.Reserve resolves and checks it.
type Request struct {
	ID             string              `json:"id"` // of the request, for idempotency; required
	Tenant         string              `json:"tenant"`
	VM             string              `json:"vm"`   // name or id; or
	Port           string              `json:"port"` // name of an attached port
	Network        vnet.Moniker        `json:"network"`
	CAs            []vnet.CA           `json:"cas"`             // one of each family at most; the next free ones of the others
	Groups         []string            `json:"groups"`          // security groups of the new network
	Services       []string            `json:"services"`        // of the new network, to join
	Hostname       string              `json:"hostname"`        // "": as before
	Confirm        vnet.Confirm        `json:"confirm"`         // "": Reserve chooses, else lease
	Trigger        vnet.Trigger        `json:"trigger"`         // "": bounce
	Budgets        Budgets             `json:"budgets"`         // zero fields: [DefaultBudgets]
	OldConnections vnet.OldConnections `json:"old_connections"` // "": reset
	Drain          time.Duration       `json:"drain"`           // with drain: how long the flip waits at most; 0: [DefaultDrain]
	Claim          string              `json:"claim"`           // claim id, when a claim asks
	Settings       any                 `json:"-"`               // handed to Reserve as it is: the owner's settings of a claim
}

// Budgets are how long each part of a swap may take, counted by the leader that
// drives it; a new leader grants a fresh one.
type Budgets struct {
	Stage   time.Duration `json:"stage"`   // until the host is prepared and the switch written
	Lease   time.Duration `json:"lease"`   // from the switch until the guest is seen on its new CA
	Confirm time.Duration `json:"confirm"` // from there until confirmed
	Undo    time.Duration `json:"undo"`    // from undoing until the guest is seen on its old CA
	Boot    time.Duration `json:"boot"`    // for all that, from when the guest was reset on its way; the engine's
}

// DefaultBudgets are taken where a request has none.
var DefaultBudgets = Budgets{Stage: 5 * time.Second, Lease: 25 * time.Second, Confirm: 30 * time.Second, Undo: 30 * time.Second, Boot: 5 * time.Minute}

// DefaultDrain is how long a flip waits for old connections to end, where a
// request says nothing.
const DefaultDrain = 30 * time.Second

func (b Budgets) orDefault() Budgets {
	pick := func(d, otherwise time.Duration) time.Duration {
		if d > 0 {
			return d
		}
		return otherwise
	}
	return Budgets{
		Stage:   pick(b.Stage, DefaultBudgets.Stage),
		Lease:   pick(b.Lease, DefaultBudgets.Lease),
		Confirm: pick(b.Confirm, DefaultBudgets.Confirm),
		Undo:    pick(b.Undo, DefaultBudgets.Undo),
	}
}

// A Record is a swap: the row from which any leader goes on, and its receipt.
type Record struct {
	ID             string              `json:"id"`
	RequestID      string              `json:"request_id"`
	Phase          Phase               `json:"phase"`
	Tenant         string              `json:"tenant"`
	Port           string              `json:"port"`
	VM             string              `json:"vm,omitempty"`
	Host           string              `json:"host"`
	MAC            vnet.MAC            `json:"mac"`
	PA             vnet.PA             `json:"pa"`
	Before         vnet.Place          `json:"before"`
	After          vnet.Place          `json:"after"`
	Back           *vnet.Place         `json:"back,omitempty"` // where undoing leads: the old place as it is now, of a higher epoch
	Confirm        vnet.Confirm        `json:"confirm"`
	Trigger        vnet.Trigger        `json:"trigger"`
	Budgets        Budgets             `json:"budgets"`
	OldConnections vnet.OldConnections `json:"old_connections"`
	Drain          time.Duration       `json:"drain,omitempty"`
	Services       []string            `json:"services,omitempty"` // to join once the swap is confirmed
	Left           []Seat              `json:"left,omitempty"`     // what the port was behind services of its old network
	Claim          string              `json:"claim,omitempty"`
	Error          string              `json:"error,omitempty"`    // why it was given up, and what next
	Alarm          string              `json:"alarm,omitempty"`    // what an operator should look at now
	Rung           string              `json:"rung,omitempty"`     // the trigger that worked
	Blackout       time.Duration       `json:"blackout,omitempty"` // last frame before the flip until the first after, by the dataplane
	Guest          *vnet.GuestReport   `json:"guest,omitempty"`
	Timeline       []Step              `json:"timeline"`
	Writes         int                 `json:"writes"` // durable transactions so far
	Started        time.Time           `json:"started"`
	Ended          time.Time           `json:"ended,omitzero"`
}

// A Seat is a port's place behind a service of its network.
type Seat struct {
	Service string       `json:"service"`
	Backend vnet.Backend `json:"backend"`
}

// A Step is something that happened in a swap: a phase reached, by the server's
// clock, or a hop, by the host's. Hops of the way back are named undo_<hop>.
type Step struct {
	Name string    `json:"name"`
	At   time.Time `json:"at"`
	By   string    `json:"by"` // [ByServer] or [ByHost]
}

// Whose clock a step is of.
const (
	ByServer = "server"
	ByHost   = "host"
)

// OK reports whether the port has moved for good and as asked.
func (r *Record) OK() bool { return r.Phase == Committed }

// Step returns the first step of a name, or false.
func (r *Record) Step(name string) (Step, bool) {
	i := slices.IndexFunc(r.Timeline, func(s Step) bool { return s.Name == name })
	if i < 0 {
		return Step{}, false
	}
	return r.Timeline[i], true
}

// with returns a copy that shares nothing which either will change.
func (r *Record) with(change func(*Record)) Record {
	c := *r
	c.Timeline = slices.Clone(r.Timeline)
	change(&c)
	return c
}

// enter moves r to a phase. Why is the reason when it was given up, else "".
func (r *Record) enter(p Phase, why string, now time.Time) {
	r.Phase = p
	r.step(p.String(), ByServer, now)
	switch {
	case r.Error == "":
		r.Error = why
	case p == Abandoned:
		r.Error += "; then " + why
	}
	if p.Ended() {
		r.Ended, r.Alarm = now, ""
	}
}

// hear takes over what a status adds to the receipt.
func (r *Record) hear(s *vnet.Status) {
	way := ""
	if r.Back != nil && s.Epoch == r.Back.Epoch {
		way = "undo_"
	} else if s.Epoch != r.After.Epoch {
		return
	}
	for _, h := range s.Hops {
		r.step(way+h.Name, ByHost, h.At)
	}
	if way != "" {
		return
	}
	if s.Rung != "" {
		r.Rung = s.Rung
	}
	if s.Blackout > 0 {
		r.Blackout = s.Blackout
	}
	if s.Guest != nil && s.Guest.Epoch == s.Epoch {
		r.Guest = s.Guest
	}
}

// step adds a step in order of time; of a host's hop only the first counts, since
// every status tells all of them again.
func (r *Record) step(name, by string, at time.Time) {
	if by == ByHost && slices.ContainsFunc(r.Timeline, func(s Step) bool { return s.Name == name && s.By == by }) {
		return
	}
	at = at.UTC().Round(0)
	r.Timeline = append(r.Timeline, Step{Name: name, At: at, By: by})
	slices.SortStableFunc(r.Timeline, func(a, b Step) int { return a.At.Compare(b.At) })
}

// mappings returns the directory's entries of the port at a place, by key.
func (r *Record) mappings(p *vnet.Place) map[string]vnet.Mapping {
	rows := make(map[string]vnet.Mapping, len(p.Addrs))
	for _, a := range p.Addrs {
		rows[store.MappingKey(p.VNI, a.CA)] = vnet.Mapping{
			VNI: p.VNI, CA: a.CA, PA: r.PA, MAC: r.MAC, Epoch: p.Epoch, Port: r.Port, Host: r.Host, Groups: p.Slots}
	}
	return rows
}

// places are all where the port may be.
func (r *Record) places() []*vnet.Place {
	all := []*vnet.Place{&r.Before, &r.After}
	if r.Back != nil {
		all = append(all, r.Back)
	}
	return all
}

// bound is the epoch that the swap leads to now.
func (r *Record) bound() vnet.Epoch {
	if r.Back != nil {
		return r.Back.Epoch
	}
	return r.After.Epoch
}

// at returns p as the place that swap r leads to under an epoch.
func (r *Record) at(p vnet.Place, e vnet.Epoch, undo bool) vnet.Place {
	p.Epoch, p.Swap, p.Undo = e, r.ID, undo
	p.Confirm, p.Trigger, p.LeaseBudget = r.Confirm, r.Trigger, r.Budgets.Lease
	p.OldConnections, p.Drain = r.OldConnections, r.Drain
	if undo {
		p.Confirm, p.LeaseBudget = vnet.ConfirmLease, r.Budgets.Undo // to be seen at home is all that counts
		p.OldConnections, p.Drain = vnet.ResetConnections, 0
	}
	if p.Document != nil {
		d := *p.Document
		d.Epoch = e
		p.Document = &d
	}
	return p
}

// brief leaves of a place's document what a receipt shows and the way back must know.
// What owners say of their guests, secrets too, stands in the intent alone: a receipt
// outlives the VM, and each step of a swap would write it again.
func (r *Record) brief() {
	if r.Back != nil { // others look at the one that was shown
		back := *r.Back
		r.Back = &back
	}
	for _, p := range r.places() {
		if d := p.Document; d != nil {
			p.Document = &vnet.Document{Epoch: d.Epoch, Tag: d.Tag, Instance: d.Instance, Hostname: d.Hostname}
		}
	}
}

func (r *Record) key() string { return store.Swaps + r.ID }

// EpochKey is where the highest epoch stands that was staged for a port and then
// let go without a flip: it is never given again, so that a late status of that
// staging can't be taken for one of the next. The row goes with the next flip, or
// with the port.
func EpochKey(port string) string { return store.Counters + "epochs/" + strings.TrimPrefix(port, "/") }
