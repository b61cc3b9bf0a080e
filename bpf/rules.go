package bpf

import (
	"errors"
	"fmt"
	"net/netip"
)

// MaxRules bounds the rules of one port and direction.
const MaxRules = int(datapathLimitsMAX_RULES)

// ErrRule says that a rule can't be held by the datapath.
var ErrRule = errors.New("not a rule that the datapath can hold")

// A Family restricts a rule to packets of one IP version.
type Family uint8

// The families.
const (
	AnyFamily Family = 0
	IPv4      Family = 4
	IPv6      Family = 6
)

// A Rule judges the first packet of a flow. What is zero matches everything.
type Rule struct {
	ID       uint32 // the caller's name for it; below 1<<31
	Deny     bool
	Family   Family
	Protocol uint8
	Remote   netip.Prefix // of the other end; it implies the family
	Groups   uint64       // the other end is in one of these groups of the port's network
	MinPort  uint16       // destination ports, both ends included; 0 and 0: any
	MaxPort  uint16
	ICMPType *uint8
}

// A RuleSet is all that judges a port's flows. The first rule that matches
// decides. A flow in that none matches is refused, a flow out passes.
type RuleSet struct{ In, Out []Rule }

// What decided about a flow when no rule of the caller's did.
const (
	RuleDefault = int32(datapathRuleIdRULE_DEFAULT) // none matched
	RuleNone    = int32(datapathRuleIdRULE_NONE)    // the port has no rules
)

// SetRules replaces the rules of a port in one step; nil takes them away. Flows
// that have begun are judged again by their next packet. It returns [ErrNoPort],
// [ErrRule] or [ErrFull].
func (d *Datapath) SetRules(id uint16, rules *RuleSet) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	old, err := d.activeRow(id)
	if err != nil {
		return err
	}
	if old.Ifindex == 0 {
		return fmt.Errorf("port %d: %w", id, ErrNoPort)
	}
	row := old
	row.Generation++
	if err := d.placeRules(&row, rules); err != nil {
		return fmt.Errorf("port %d: %w", id, err)
	}
	if err := d.flip(id, row); err != nil {
		return err
	}
	d.rules.release(id, d.flips, old.lists()...)
	return nil
}

// Rejudge lets the rules in force judge the flows of a port again, by their next
// packets: others are in the groups that they name. It returns [ErrNoPort].
func (d *Datapath) Rejudge(id uint16) error {
	return d.setWord(id, func(row *datapathPort) { row.Generation++ })
}

// placeRules writes rules where no row points and lets row point there.
func (d *Datapath) placeRules(row *datapathPort, rules *RuleSet) error {
	row.Flags &^= datapathPortFlag(hasRules)
	row.In, row.Out = datapathRuleList{}, datapathRuleList{}
	if rules == nil {
		return nil
	}
	row.Flags |= datapathPortFlag(hasRules)
	var err error
	row.In, row.Out, err = d.writeSet(rules)
	return err
}

func (d *Datapath) writeSet(rules *RuleSet) (in, out datapathRuleList, err error) {
	if in, err = d.writeRules(rules.In); err != nil {
		return in, out, fmt.Errorf("rules in: %w", err)
	}
	if out, err = d.writeRules(rules.Out); err != nil {
		d.rules.free(in)
		return in, out, fmt.Errorf("rules out: %w", err)
	}
	return in, out, nil
}

func (d *Datapath) writeRules(rules []Rule) (datapathRuleList, error) {
	if len(rules) > MaxRules {
		return datapathRuleList{}, fmt.Errorf("%w: %d in one direction, at most %d", ErrRule, len(rules), MaxRules)
	}
	if len(rules) == 0 {
		return datapathRuleList{}, nil
	}
	values := make([]datapathRule, len(rules))
	for i, r := range rules {
		var err error
		if values[i], err = r.value(); err != nil {
			return datapathRuleList{}, fmt.Errorf("rule %d: %w", i, err)
		}
	}
	list, err := d.rules.take(uint32(len(rules)))
	if errors.Is(err, ErrFull) { // pieces may wait for their grace period
		if err := gracePeriod(); err != nil {
			return list, err
		}
		d.rules.settleAll(d.flips)
		list, err = d.rules.take(uint32(len(rules)))
	}
	if err != nil {
		return list, err
	}
	keys := make([]uint32, len(rules))
	for i := range keys {
		keys[i] = list.Base + uint32(i)
	}
	if _, err := d.objs.Rules.BatchUpdate(keys, values, nil); err != nil {
		d.rules.free(list)
		return datapathRuleList{}, fmt.Errorf("write %d rules: %w", len(rules), err)
	}
	return list, nil
}

func (r Rule) value() (datapathRule, error) {
	v := datapathRule{Id: r.ID, Groups: r.Groups, MinPort: r.MinPort, Ports: r.MaxPort - r.MinPort}
	if v.Groups == 0 {
		v.Groups = groupAny
	}
	if r.MinPort == 0 && r.MaxPort == 0 {
		v.Ports = 0xffff
	}
	switch {
	case r.ID >= 1<<31:
		return v, fmt.Errorf("%w: ID %d", ErrRule, r.ID)
	case r.MinPort > r.MaxPort:
		return v, fmt.Errorf("%w: ports %d to %d", ErrRule, r.MinPort, r.MaxPort)
	case v.Groups != groupAny && v.Groups&groupAny != 0:
		return v, fmt.Errorf("%w: groups %#x, the highest bit is taken", ErrRule, r.Groups)
	}
	if r.Remote.IsValid() {
		v.Remote, v.Mask = as16(r.Remote.Masked().Addr()), mask16(r.Remote)
	}
	family, err := r.family()
	if err != nil {
		return v, err
	}
	if family != AnyFamily {
		v.about(datapathKindShiftKIND_FAMILY, uint8(family))
	}
	if r.Protocol != 0 {
		v.about(datapathKindShiftKIND_PROTO, r.Protocol)
	}
	if r.ICMPType != nil {
		v.about(datapathKindShiftKIND_ICMP_TYPE, *r.ICMPType)
	}
	if r.Deny {
		v.Deny = 1
	}
	return v, nil
}

// groupAny is the group that everybody is in.
const groupAny = 1 << 63

func (v *datapathRule) about(shift datapathKindShift, value uint8) {
	v.Kind |= uint32(value) << shift
	v.KindMask |= 0xff << shift
}

func (v datapathRule) kind(shift datapathKindShift) (uint8, bool) {
	return uint8(v.Kind >> shift), v.KindMask>>shift&0xff != 0
}

// family returns the family that the rule is about, by its word or its prefix.
func (r Rule) family() (Family, error) {
	if r.Family != AnyFamily && r.Family != IPv4 && r.Family != IPv6 {
		return r.Family, fmt.Errorf("%w: family %d", ErrRule, r.Family)
	}
	if !r.Remote.IsValid() {
		return r.Family, nil
	}
	of := IPv6
	if r.Remote.Addr().Is4() {
		of = IPv4
	}
	if r.Family != AnyFamily && r.Family != of {
		return of, fmt.Errorf("%w: %s is not of family IPv%d", ErrRule, r.Remote, r.Family)
	}
	return of, nil
}

func (v datapathRule) rule() Rule {
	r := Rule{ID: v.Id, Deny: v.Deny != 0, Groups: v.Groups &^ groupAny}
	if v.Ports != 0xffff || v.MinPort != 0 {
		r.MinPort, r.MaxPort = v.MinPort, v.MinPort+v.Ports
	}
	if family, ok := v.kind(datapathKindShiftKIND_FAMILY); ok {
		r.Family = Family(family)
	}
	r.Protocol, _ = v.kind(datapathKindShiftKIND_PROTO)
	if t, ok := v.kind(datapathKindShiftKIND_ICMP_TYPE); ok {
		r.ICMPType = &t
	}
	if v.Mask != (datapathAddr{}) {
		a := v.Remote.ip()
		if r.Family == IPv6 {
			a = netip.AddrFrom16(v.Remote.B)
		}
		r.Remote = netip.PrefixFrom(a, v.Mask.bits(a))
	}
	return r
}

// ruleSet reads back the rules that a row points to.
func (d *Datapath) ruleSet(row datapathPort) (*RuleSet, error) {
	if row.Flags&datapathPortFlag(hasRules) == 0 {
		return nil, nil
	}
	in, err1 := d.rulesAt(row.In)
	out, err2 := d.rulesAt(row.Out)
	return &RuleSet{In: in, Out: out}, errors.Join(err1, err2)
}

func (d *Datapath) rulesAt(l datapathRuleList) ([]Rule, error) {
	var out []Rule
	for i := range l.Count {
		var v datapathRule
		if err := d.objs.Rules.Lookup(l.Base+i, &v); err != nil {
			return out, fmt.Errorf("read rule %d: %w", l.Base+i, err)
		}
		out = append(out, v.rule())
	}
	return out, nil
}

func (p datapathPort) lists() []datapathRuleList { return []datapathRuleList{p.In, p.Out} }

// readRules learns which pieces of the rules map the rows in force point to, and
// those that they have replaced.
func (d *Datapath) readRules() error {
	d.rules = ruleSpace{size: d.objs.Rules.MaxEntries()}
	d.held = map[uint16]datapathPort{}
	replaced := map[uint16]datapathPort{}
	err := each(d.objs.Ports, func(id uint32, slot datapathPortSlot) error {
		row, old := slot.Row[slot.Active&1], slot.Row[1-slot.Active&1]
		if row.Ifindex == 0 {
			return nil
		}
		for _, l := range row.lists() {
			d.rules.occupy(l)
		}
		if old.Ifindex != 0 && old.Epoch < row.Epoch {
			replaced[uint16(id)] = old
		}
		return nil
	})
	for id, old := range replaced {
		d.reholdRules(id, old)
	}
	return err
}

// SetMembers says which groups of its network a CA is in; 0 takes it out of all.
func (d *Datapath) SetMembers(k MappingKey, groups uint64) error {
	if groups == 0 {
		if err := ignoreMissing(d.objs.Members.Delete(k.key())); err != nil {
			return fmt.Errorf("take %s in %d out of its groups: %w", k.CA, k.VNI, err)
		}
		return nil
	}
	if err := d.objs.Members.Put(k.key(), datapathMembers{Groups: groups}); err != nil {
		return fmt.Errorf("put %s in %d into its groups: %w", k.CA, k.VNI, full(err))
	}
	return nil
}

// EachMember reads back what SetMembers has put, in no order.
func (d *Datapath) EachMember(f func(MappingKey, uint64)) error {
	return each(d.objs.Members, func(k datapathMappingKey, m datapathMembers) error {
		f(MappingKey{k.Vni, k.Ca.ip()}, m.Groups)
		return nil
	})
}
