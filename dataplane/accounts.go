package dataplane

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"replug/directory/vnet"
)

// A Tally is what a port has sent and got since it was made, over all its networks.
type Tally struct {
	FromPackets, FromBytes uint64 // accepted from the VM
	ToPackets, ToBytes     uint64 // delivered to it
	Drops                  uint64 // refused, in both directions
}

// An account is a network, whose name is its tenant's: another one's may be the same.
type account struct {
	tenant  string
	network vnet.Moniker
}

func accountOf(p *vnet.Place) account { return account{p.Tenant, p.Network} }

// accounts count what networks carry here. A port's tally goes on when it changes
// networks; what it grew by belongs to the network that it was in meanwhile.
// There are no labels of ports: a host has too many, for too short a time. Who wants
// them all the same has [portCounters].
type accounts struct {
	tally   func(vnet.PortID) (Tally, error)
	here    func() map[vnet.PortID]account
	packets *prometheus.CounterVec
	bytes   *prometheus.CounterVec
	drops   *prometheus.CounterVec

	mu    sync.Mutex
	last  map[vnet.PortID]Tally
	shown map[account]bool
}

func newAccounts(r prometheus.Registerer) *accounts {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, append([]string{"tenant", "network"}, labels...))
	}
	a := &accounts{
		packets: counter("replug_network_packets_total", "Packets of a network's ports here: from VMs, to VMs.", "direction"),
		bytes:   counter("replug_network_bytes_total", "Ethernet bytes of a network's ports here: from VMs, to VMs.", "direction"),
		drops:   counter("replug_network_drops_total", "Frames refused from or to a network's ports here."),
		last:    map[vnet.PortID]Tally{}, shown: map[account]bool{},
	}
	r.MustRegister(a.packets, a.bytes, a.drops)
	return a
}

// begin takes the tallies of an earlier session as known: they were counted then.
func (a *accounts) begin(ports []vnet.PortID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, id := range ports {
		if t, err := a.tally(id); err == nil {
			a.last[id] = t
		}
	}
}

// leave counts what a port did in the network that it is about to leave.
func (a *accounts) leave(id vnet.PortID, in account) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.add(id, in)
}

// gone forgets a port, whose tally begins at zero again.
func (a *accounts) gone(id vnet.PortID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.last, id)
}

// all counts what all ports did, and drops networks that have none here any more.
func (a *accounts) all() {
	here := a.here()
	a.mu.Lock()
	defer a.mu.Unlock()
	now := map[account]bool{}
	for id, in := range here {
		a.add(id, in)
		now[in] = true
	}
	for gone := range a.shown {
		if !now[gone] {
			label := prometheus.Labels{"tenant": gone.tenant, "network": string(gone.network)}
			a.packets.DeletePartialMatch(label)
			a.bytes.DeletePartialMatch(label)
			a.drops.DeletePartialMatch(label)
		}
	}
	a.shown = now
}

func (a *accounts) add(id vnet.PortID, in account) {
	now, err := a.tally(id)
	if err != nil {
		return // it will be counted next time
	}
	was := a.last[id]
	a.last[id] = now
	a.shown[in] = true
	tenant, name := in.tenant, string(in.network)
	a.packets.WithLabelValues(tenant, name, "from").Add(grown(was.FromPackets, now.FromPackets))
	a.packets.WithLabelValues(tenant, name, "to").Add(grown(was.ToPackets, now.ToPackets))
	a.bytes.WithLabelValues(tenant, name, "from").Add(grown(was.FromBytes, now.FromBytes))
	a.bytes.WithLabelValues(tenant, name, "to").Add(grown(was.ToBytes, now.ToBytes))
	a.drops.WithLabelValues(tenant, name).Add(grown(was.Drops, now.Drops))
}

// grown is by how much; a number that is smaller began at zero again.
func grown(was, now uint64) float64 {
	if now < was {
		return float64(now)
	}
	return float64(now - was)
}
