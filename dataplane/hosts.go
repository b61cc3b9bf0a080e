package dataplane

import (
	"context"
	"net/netip"

	"replug/directory/vnet"
)

// A hostRow is who frames go to by a next hop of its own.
type hostRow struct {
	prefix  netip.Prefix
	nextHop uint32 // 0: the kernel finds the way
	vtep    bool   // and no host of ours: it speaks for nobody whom the directory doesn't know there
}

// OnHost takes a registered host: its frames are believed from now on, and
// there is a way to it.
func (ns *networks) OnHost(h vnet.HostInfo) {
	if h.Name == ns.self {
		return // our own addresses never come in from the wire
	}
	ns.lead(h.Name, hostRow{prefix: h.PAPrefix.Masked()})
}

// lead makes a way to a host or VTEP, and registers a host.
func (ns *networks) lead(name string, row hostRow) {
	if ns.heard != nil {
		ns.heard[name] = true
	}
	if !ns.sendsTo(row.prefix.Addr()) {
		ns.OnHostGone(name)
		ns.log.Error("no frame passes between this host and one whose underlay is of another family: give all hosts and VTEPs addresses of one",
			"host", name, "has", vnet.Underlay(row.prefix.Addr()), "pa_prefix", row.prefix, "here", vnet.Underlay(ns.own))
		return
	}
	ns.mu.Lock()
	old, known := ns.hosts[name]
	if row.nextHop = old.nextHop; row.nextHop == 0 {
		row.nextHop = ns.hopFor(row.prefix)
	}
	ns.hosts[name] = row
	ns.mu.Unlock()
	if known && old.prefix != row.prefix {
		ns.unregister(name, old)
	}
	if !row.vtep {
		ns.warn("host is not known to the datapath", ns.datapath.PutHost(row.prefix), name)
	}
	ns.changed()
}

// sendsTo reports whether a PA is of the family of this host's underlay. Control lets
// no other in; one that an older server has let in is an unknown destination here, not
// a frame that vanishes on the wire.
func (ns *networks) sendsTo(pa netip.Addr) bool { return !ns.own.IsValid() || ns.own.Is4() == pa.Is4() }

// OnHostGone takes the end of a host.
func (ns *networks) OnHostGone(name string) {
	ns.flush()
	ns.mu.Lock()
	row, ok := ns.hosts[name]
	delete(ns.hosts, name)
	delete(ns.hops, row.nextHop)
	delete(ns.taken, row.nextHop)
	ns.mu.Unlock()
	if !ok {
		return
	}
	ns.unregister(name, row)
	if row.nextHop != 0 {
		ns.warn("next hop of a host that is gone stays", ns.datapath.SetNextHop(row.nextHop, NextHop{}), name)
	}
}

// unregister ends that frames from a host's former addresses are believed, unless they
// are another host's by now: a machine may join again under another name.
func (ns *networks) unregister(name string, was hostRow) {
	ns.mu.Lock()
	keep := was.vtep // was never registered
	for _, row := range ns.hosts {
		keep = keep || !row.vtep && row.prefix == was.prefix
	}
	ns.mu.Unlock()
	if !keep {
		ns.warn("frames from former addresses of a host are still believed", ns.datapath.DeleteHost(was.prefix), name)
	}
}

// forgetHosts ends a resync: hosts that were not in it are gone.
func (ns *networks) forgetHosts() {
	prefixes, err := ns.datapath.Hosts()
	ns.warn("hosts can't be read back", err, "")
	ns.mu.Lock()
	var gone []string
	inUse := map[netip.Prefix]bool{}
	for name, row := range ns.hosts {
		switch {
		case !ns.heard[name]:
			gone = append(gone, name)
		case !row.vtep:
			inUse[row.prefix] = true
		}
	}
	clear(ns.kept)
	ns.mu.Unlock()
	for _, name := range gone {
		ns.OnHostGone(name)
	}
	for _, p := range prefixes {
		if !inUse[p] {
			ns.warn("host of an earlier session stays in the datapath", ns.datapath.DeleteHost(p), p.String())
		}
	}
}

// hopFor returns the index of the next hop of a prefix: the one it had in an
// earlier session, since mappings in the datapath name it; else a free one; 0
// when there is none.
func (ns *networks) hopFor(prefix netip.Prefix) uint32 {
	for n, pa := range ns.kept {
		if prefix.Contains(pa.Addr) && !ns.taken[n] {
			ns.taken[n] = true
			return n
		}
	}
	for range maxNextHops {
		ns.last = ns.last%maxNextHops + 1
		if _, kept := ns.kept[ns.last]; !kept && !ns.taken[ns.last] {
			ns.taken[ns.last] = true
			return ns.last
		}
	}
	return 0
}

// changed asks for the next hops to be looked up again.
func (ns *networks) changed() { signal(ns.refresh) }

// resolve writes the next hop of every host, with the time. What isn't known
// yet is left to the kernel; its answer to the question comes as a change.
func (ns *networks) resolve(ctx context.Context) {
	ns.mu.Lock()
	todo := make(map[uint32]netip.Addr, len(ns.hosts))
	for _, h := range ns.hosts {
		if h.nextHop != 0 {
			todo[h.nextHop] = h.prefix.Addr()
		}
	}
	ns.mu.Unlock()
	for index, addr := range todo {
		hop, ok := ns.neighbours.NextHop(ctx, addr)
		ns.mu.Lock()
		had, known := ns.hops[index]
		if ok {
			ns.hops[index] = hop
		} else {
			delete(ns.hops, index)
		}
		ns.mu.Unlock()
		if ok || known && had != (NextHop{}) {
			ns.warn("next hop is not known to the datapath", ns.datapath.SetNextHop(index, hop), addr.String())
		}
	}
}

func (ns *networks) warn(what string, err error, host string) {
	if err != nil {
		ns.log.Error(what, "err", err, "host", host)
	}
}
