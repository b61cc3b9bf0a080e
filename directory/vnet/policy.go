package vnet

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"
)

// Bounds of what one port or network carries. The datapath's tables have them.
const (
	MaxRules  = 1000 // of one port and direction, those of all its groups together
	MaxGroups = 63   // of one network
	MaxWeight = 1000 // of a backend
)

// ErrProtocol says that a protocol has neither a name that is known nor a number.
var ErrProtocol = errors.New("not a protocol (tcp, udp, sctp, icmp, icmpv6, or 1 to 255)")

// A Protocol is an IP protocol number (IANA); 0 means any.
type Protocol uint8

// The protocols that have names.
const (
	AnyProtocol Protocol = 0
	ICMP        Protocol = 1
	TCP         Protocol = 6
	UDP         Protocol = 17
	ICMPv6      Protocol = 58
	SCTP        Protocol = 132
)

var protocols = map[Protocol]string{AnyProtocol: "any", ICMP: "icmp", TCP: "tcp", UDP: "udp", ICMPv6: "icmpv6", SCTP: "sctp"}

// String returns the name, or the number of one that has none.
func (p Protocol) String() string {
	if name, ok := protocols[p]; ok {
		return name
	}
	return strconv.Itoa(int(p))
}

// ParseProtocol reads what [Protocol.String] prints, and "" as any; it returns [ErrProtocol].
func ParseProtocol(s string) (Protocol, error) {
	if s == "" {
		return AnyProtocol, nil
	}
	for p, name := range protocols {
		if s == name {
			return p, nil
		}
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q: %w", s, ErrProtocol)
	}
	return Protocol(n), nil
}

// HasPorts reports whether packets of p carry port numbers.
func (p Protocol) HasPorts() bool { return p == TCP || p == UDP || p == SCTP }

// MarshalText prints p as [Protocol.String] does.
func (p Protocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what [ParseProtocol] reads.
func (p *Protocol) UnmarshalText(b []byte) (err error) {
	*p, err = ParseProtocol(string(b))
	return err
}

// Direction is seen from the VM.
type Direction string

// The directions.
const (
	In  Direction = "in"  // to the VM
	Out Direction = "out" // from the VM
)

// Action is what becomes of the first packet of a flow that a rule matches. The
// packets after it, and the answers, share its fate.
type Action string

// The actions.
const (
	Allow Action = "allow"
	Deny  Action = "deny"
)

// A Rule is one line of a security group. A packet matches when all that is set
// does. Among the rules of all groups of a port, the lowest priority that matches
// decides; of two with the same priority, deny does.
type Rule struct {
	Name        string       `json:"name"`     // unique in its group; shown by trace and flow logs
	Priority    uint16       `json:"priority"` // 1 to 65535, the lowest decides
	Direction   Direction    `json:"direction"`
	Action      Action       `json:"action"`
	Protocol    Protocol     `json:"protocol,omitempty"`
	Remote      netip.Prefix `json:"remote,omitzero"`        // of the other end; not valid: any, of both families
	RemoteGroup string       `json:"remote_group,omitempty"` // a group of the same network that the other end is in
	MinPort     uint16       `json:"min_port,omitempty"`     // destination ports, both ends included; 0 and 0: any
	MaxPort     uint16       `json:"max_port,omitempty"`
	ICMPType    *uint8       `json:"icmp_type,omitempty"` // nil: any
}

// A Group is a security group: rules, and a name for the VMs that have them. It
// lives in one network. A port in no group has no rules: all passes. A port in
// any group gets nothing in that no rule allows; out passes what no rule denies.
type Group struct {
	VNI        VNI    `json:"vni"`
	Name       string `json:"name"`
	Slot       uint8  `json:"slot"`       // its bit in [Groups], 0 to MaxGroups-1
	Generation uint64 `json:"generation"` // grows with each edit of the rules
	Rules      []Rule `json:"rules,omitempty"`
}

// Groups is a set of groups of one network, a bit each.
type Groups uint64

// With returns g and the group of that slot.
func (g Groups) With(slot uint8) Groups { return g | 1<<slot }

// Has reports whether the group of that slot is in g.
func (g Groups) Has(slot uint8) bool { return g>>slot&1 == 1 }

// A Service is a virtual address and port that leads to VMs of a network.
type Service struct {
	VNI      VNI       `json:"vni"`
	Name     string    `json:"name"`
	VIP      CA        `json:"vip"` // no port's address
	Port     uint16    `json:"port"`
	Protocol Protocol  `json:"protocol"`           // TCP, UDP or SCTP
	Affinity bool      `json:"affinity,omitempty"` // a client's flows go to one backend
	Check    *Check    `json:"check,omitempty"`    // nil: every backend counts as healthy
	Backends []Backend `json:"backends,omitempty"`
}

// A Backend is a VM behind a service.
type Backend struct {
	Member   string `json:"member"` // port name
	CA       CA     `json:"ca"`
	Port     uint16 `json:"port"`               // that it listens on
	Weight   uint16 `json:"weight"`             // 1 to MaxWeight; 0: no new flows, as when drained
	Draining bool   `json:"draining,omitempty"` // keeps its flows, gets no new ones
	Dead     bool   `json:"dead,omitempty"`     // failed its check: flows are reset, none is sent there
	Away     bool   `json:"away,omitempty"`     // its host was not heard of for a while: as if draining
}

// A Check is how a host finds out whether a backend of its own lives: a TCP
// handshake from the gateway's address.
type Check struct {
	Port     uint16        `json:"port"` // 0: the backend's
	Interval time.Duration `json:"interval"`
	Timeout  time.Duration `json:"timeout"`
	Rise     int           `json:"rise"` // successes in a row until it lives
	Fall     int           `json:"fall"` // failures in a row until it is dead
}

// A Health is what a host found out about a backend of its own.
type Health struct {
	VNI     VNI    `json:"vni"`
	Service string `json:"service"`
	Member  string `json:"member"`
	Dead    bool   `json:"dead"`
	Error   string `json:"error,omitempty"`
}

// A Rate bounds one direction of a port, by token bucket. Zero: no bound.
type Rate struct {
	Bits    uint64 `json:"bits,omitempty"`    // a second, of Ethernet frames
	Packets uint64 `json:"packets,omitempty"` // a second, as on a wire: a GSO frame counts each segment
}

// Limits are a port's rates, set live.
type Limits struct {
	From Rate `json:"from,omitzero"` // what the VM sends
	To   Rate `json:"to,omitzero"`   // what it gets
}

// OldConnections says what becomes of a port's connections when it leaves a network.
type OldConnections string

// The ways.
const (
	ResetConnections   OldConnections = "reset"   // both ends get a TCP reset at once; the default
	DrainConnections   OldConnections = "drain"   // the flip waits for them to end, up to a time, then resets
	SilenceConnections OldConnections = "silence" // nothing is sent; they time out
)
