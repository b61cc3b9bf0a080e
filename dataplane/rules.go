package dataplane

import (
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"

	"replug/directory/vnet"
)

// A Ruleset is what the first packets of a port's flows are judged by: the rules
// of all its groups, in the order in which they decide. It is never changed once
// it was handed out, and ports with the same groups have the same one.
type Ruleset struct {
	Open    bool // in no group: everything passes
	In, Out []Rule
	Moves   uint64 // how often members of the groups that the rules name have changed
}

// judgesAs reports whether two sets have the same rules, whoever is in their groups.
func (r *Ruleset) judgesAs(o *Ruleset) bool {
	return o != nil && r.Open == o.Open && reflect.DeepEqual(r.In, o.In) && reflect.DeepEqual(r.Out, o.Out)
}

// A Rule is a [vnet.Rule] as the datapath has it: groups are slots, names ids.
type Rule struct {
	ID       uint32 // see [groups.name]
	Deny     bool
	Protocol vnet.Protocol
	Remote   netip.Prefix // not valid: any
	Group    int8         // slot of the group that the other end is in; -1: any
	MinPort  uint16
	MaxPort  uint16
	ICMPType int16 // -1: any
}

// A RuleName is where the rule with an id comes from.
type RuleName struct {
	VNI         vnet.VNI
	Group, Rule string
}

// errRules says that the groups of a port have too many rules.
var errRules = fmt.Errorf("the port's groups together have more than %d rules in one direction: remove rules, or the port from a group", vnet.MaxRules)

// errGroups says that rules can't be made yet.
var errGroups = errors.New("the groups of the network are not known yet")

// open is the set of all ports that are in no group.
var open = &Ruleset{Open: true}

// groups knows the security groups of networks and makes rule sets of them.
type groups struct {
	mu    sync.Mutex
	of    map[vnet.VNI]*networkGroups
	names map[uint32]RuleName
}

// networkGroups are those of one network.
type networkGroups struct {
	complete bool // all of them are here
	byName   map[string]*group
	version  uint64                 // grows with each change
	moves    [vnet.MaxGroups]uint64 // changes of who is in a group, by its slot
	sets     map[string]*ruleset
}

type group struct {
	vnet.Group
	ids  []uint32 // of its rules
	past []uint32 // of rules that the last edit removed: flows may still name them
}

// A ruleset is a [Ruleset] with the version of the network that it was made of.
type ruleset struct {
	*Ruleset
	version uint64
}

func newGroups() *groups {
	return &groups{of: map[vnet.VNI]*networkGroups{}, names: map[uint32]RuleName{}}
}

// put takes a new or changed group.
func (gs *groups) put(g vnet.Group) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	n := gs.network(g.VNI)
	n.version++
	was := n.byName[g.Name]
	now := &group{Group: g, ids: make([]uint32, len(g.Rules))}
	for i := range g.Rules {
		now.ids[i] = gs.id(RuleName{g.VNI, g.Name, g.Rules[i].Name})
	}
	if was != nil {
		gs.forget(was.past, now.ids, was.ids)
		now.past = slices.DeleteFunc(was.ids, func(id uint32) bool { return slices.Contains(now.ids, id) })
	}
	n.byName[g.Name] = now
}

// moved notes that addresses of a network have come into groups, or left them.
func (gs *groups) moved(vni vnet.VNI, in vnet.Groups) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	n := gs.network(vni)
	n.version++
	for slot := range n.moves {
		if in.Has(uint8(slot)) {
			n.moves[slot]++
		}
	}
}

// gone takes the end of a group.
func (gs *groups) gone(vni vnet.VNI, name string) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	gs.remove(vni, name)
}

func (gs *groups) remove(vni vnet.VNI, name string) {
	n := gs.network(vni)
	if g := n.byName[name]; g != nil {
		gs.forget(g.ids)
		gs.forget(g.past)
		delete(n.byName, name)
		n.version++
	}
}

// loaded says that a network's groups are complete: those that keep refuses,
// known from before, are gone.
func (gs *groups) loaded(vni vnet.VNI, keep func(name string) bool) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	n := gs.network(vni)
	for name := range n.byName {
		if !keep(name) {
			gs.remove(vni, name)
		}
	}
	n.complete = true
}

// drop forgets the networks that keep refuses.
func (gs *groups) drop(keep func(vnet.VNI) bool) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	for vni, n := range gs.of {
		if keep(vni) {
			continue
		}
		for name := range n.byName {
			gs.remove(vni, name)
		}
		delete(gs.of, vni)
	}
}

func (gs *groups) network(vni vnet.VNI) *networkGroups {
	if gs.of[vni] == nil {
		gs.of[vni] = &networkGroups{byName: map[string]*group{}, sets: map[string]*ruleset{}}
	}
	return gs.of[vni]
}

// id numbers a rule. The number is the same after a restart, but for rare
// collisions: what the datapath remembers of before can still be named.
func (gs *groups) id(n RuleName) uint32 {
	h := fnv.New32a()
	fmt.Fprintf(h, "%d/%s/%s", n.VNI, n.Group, n.Rule)
	const most = 1<<31 - 1 // that the datapath takes
	for id := h.Sum32() & most; ; id = (id + 1) & most {
		if taken, ok := gs.names[id]; id != 0 && (!ok || taken == n) {
			gs.names[id] = n
			return id
		}
	}
}

// forget frees the ids that are in none of the lists of those in use.
func (gs *groups) forget(ids []uint32, used ...[]uint32) {
	for _, id := range ids {
		if !slices.ContainsFunc(used, func(u []uint32) bool { return slices.Contains(u, id) }) {
			delete(gs.names, id)
		}
	}
}

// name tells where a rule comes from; false: it is not known any more.
func (gs *groups) name(id uint32) (RuleName, bool) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	n, ok := gs.names[id]
	return n, ok
}

// rules returns the set of a place. It is the same pointer as long as it says the
// same. It returns [errGroups] and [errRules].
func (gs *groups) rules(place *vnet.Place) (*Ruleset, error) {
	if len(place.Groups) == 0 {
		return open, nil
	}
	gs.mu.Lock()
	defer gs.mu.Unlock()
	n := gs.of[place.VNI]
	if n == nil || !n.complete {
		return nil, fmt.Errorf("network %s: %w", place.Network, errGroups)
	}
	names := slices.Compact(slices.Sorted(slices.Values(place.Groups)))
	key := strings.Join(names, "\x00")
	have := n.sets[key]
	if have != nil && have.version == n.version {
		return have.Ruleset, nil
	}
	set := n.merge(names)
	if max(len(set.In), len(set.Out)) > vnet.MaxRules {
		return nil, fmt.Errorf("network %s: %w", place.Network, errRules)
	}
	if have != nil && reflect.DeepEqual(have.Ruleset, set) {
		set = have.Ruleset
	}
	n.tidy()
	n.sets[key] = &ruleset{set, n.version}
	return set, nil
}

// tidy drops sets that nobody has asked for in a while.
func (n *networkGroups) tidy() {
	const changes = 64
	for key, s := range n.sets {
		if s.version+changes < n.version {
			delete(n.sets, key)
		}
	}
}

// merge puts the rules of groups in the order in which they decide: by priority,
// and deny before allow. A group that isn't there adds nothing: a port in it gets
// nothing in all the same.
func (n *networkGroups) merge(names []string) *Ruleset {
	type ranked struct {
		of  *vnet.Rule
		out Rule
	}
	var all []ranked
	for _, name := range names {
		g := n.byName[name]
		if g == nil {
			continue
		}
		for i := range g.Rules {
			if rule, ok := n.rule(&g.Rules[i], g.ids[i]); ok {
				all = append(all, ranked{&g.Rules[i], rule})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(a.of.Priority, b.of.Priority), cmp.Compare(allows(a.of.Action), allows(b.of.Action)))
	})
	set := new(Ruleset)
	for _, r := range all {
		if r.out.Group >= 0 {
			set.Moves += n.moves[r.out.Group]
		}
		if r.of.Direction == vnet.In {
			set.In = append(set.In, r.out)
		} else {
			set.Out = append(set.Out, r.out)
		}
	}
	return set
}

func allows(a vnet.Action) int {
	if a == vnet.Allow {
		return 1
	}
	return 0
}

// rule translates one rule; false: it names a group that isn't there, so no
// packet matches it.
func (n *networkGroups) rule(r *vnet.Rule, id uint32) (Rule, bool) {
	out := Rule{ID: id, Deny: r.Action != vnet.Allow, Protocol: r.Protocol, Remote: r.Remote, Group: -1,
		MinPort: r.MinPort, MaxPort: r.MaxPort, ICMPType: -1}
	if r.ICMPType != nil {
		out.ICMPType = int16(*r.ICMPType)
	}
	if r.RemoteGroup != "" {
		g := n.byName[r.RemoteGroup]
		if g == nil {
			return out, false
		}
		out.Group = int8(g.Slot)
	}
	return out, true
}
