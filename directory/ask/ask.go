// Package ask holds the questions that control puts to a host, and the answers, as
// they ride the host's stream: JSON, so that an older agent reads what it knows of a
// newer server's question. It decides nothing and does no I/O.
package ask

import (
	"net/netip"
	"time"

	"replug/directory/frame"
	"replug/directory/vnet"
)

// Kinds of questions.
const (
	KindTraceFromVM   = "trace_from_vm"   // TraceFromVM -> Trace
	KindTraceFromWire = "trace_from_wire" // TraceFromWire -> Trace
	KindCapture       = "capture"         // Capture -> Captured, until count or cancelled
	KindDrops         = "drops"           // Drops -> Refused, once or each second until cancelled
	KindFlows         = "flows"           // Flows -> []Flow, in parts
)

// TraceFromVM asks what would become of a frame that a port's VM sends.
type TraceFromVM struct {
	Port string     `json:"port"`
	Spec frame.Spec `json:"spec"` // no MACs, they are the port's; Src not valid: its first address of the family of Dst
}

// TraceFromWire asks what would become of a frame that comes in from the underlay.
type TraceFromWire struct {
	Frame []byte `json:"frame"`
}

// Verdicts of a [Trace].
const (
	Dropped  = "dropped"
	Trapped  = "trapped"  // handed to the host's agent, which answers DHCP and the like
	Answered = "answered" // by the datapath itself: ARP, ND, ping of the gateway, too big
	ToIMDS   = "to_imds"  // to the metadata service
	ToPort   = "to_port"  // delivered to a port of this host
	ToWire   = "to_wire"  // sent to another host, or a VTEP
	SentUp   = "sent_up"  // to the kernel's VXLAN device, which unwraps merged frames, then to the port
	Passed   = "passed"   // none of Replug's: left to the host's own stack
)

// A Trace is what the loaded programs did with one frame, and on which rows of the
// maps it rested. Nothing was sent, and nothing counted.
type Trace struct {
	Verdict string         `json:"verdict"`
	Drop    string         `json:"drop,omitempty"` // name of the reason
	Why     string         `json:"why,omitempty"`  // what the reason means
	Port    PortRef        `json:"port"`           // that the frame came from, or is for; none yet: empty
	To      PortRef        `json:"to"`             // that gets it here
	RuleOut Decision       `json:"rule_out,omitzero"`
	RuleIn  Decision       `json:"rule_in,omitzero"`
	Reset   bool           `json:"reset,omitempty"`   // the sender of a dropped one gets a TCP reset
	Service netip.AddrPort `json:"service,omitzero"`  // virtual address that was translated
	Backend netip.AddrPort `json:"backend,omitzero"`  // to this one
	Route   netip.Prefix   `json:"route,omitzero"`    // that matched
	NextHop netip.Addr     `json:"next_hop,omitzero"` // a CA; not valid: on-link
	Mapping *Mapping       `json:"mapping,omitempty"` // of destination or next hop
	MTU     int            `json:"mtu,omitempty"`     // bytes that would fit, of a frame that does not
	Device  string         `json:"device,omitempty"`  // it leaves by
	Sent    []byte         `json:"sent"`              // the frame as it was given
	Frame   []byte         `json:"frame,omitempty"`   // as it leaves; of a dropped one, what its sender gets
}

// A Decision says what let a flow begin, or did not; empty: nothing was asked.
type Decision struct {
	Rule string `json:"rule,omitempty"` // group/name; "": no rule matched
	Says string `json:"says,omitempty"`
	Flow string `json:"flow,omitempty"` // new, established, related
}

// A PortRef names a port and where it is now.
type PortRef struct {
	Name    string       `json:"name,omitempty"`
	ID      vnet.PortID  `json:"id,omitempty"`
	Network vnet.Moniker `json:"network,omitempty"`
	VNI     vnet.VNI     `json:"vni,omitempty"`
	Tenant  string       `json:"tenant,omitempty"`
}

// A Mapping says where a CA is reached.
type Mapping struct {
	VNI vnet.VNI   `json:"vni"`
	PA  netip.Addr `json:"pa"`
	MAC vnet.MAC   `json:"mac"`
}

// A Point is where in the datapath a frame is taken for a capture.
type Point string

// The points of a port.
const (
	PointFromVM   Point = "from_vm"   // as the VM sent it
	PointToVM     Point = "to_vm"     // as the VM gets it
	PointFromWire Point = "from_wire" // as it came from the underlay, for the port
	PointToWire   Point = "to_wire"   // as it leaves for the underlay
	PointDrop     Point = "drop"      // refused
)

// Points are all of them, in the order of a capture's interfaces.
var Points = []Point{PointFromVM, PointToVM, PointFromWire, PointToWire, PointDrop}

// Bounds of a capture.
const (
	MaxSnap = 256     // bytes of a frame that the datapath keeps
	MaxRate = 1 << 20 // bytes of frames a second that leave a host for one capture
)

// Capture asks for the frames of one port.
type Capture struct {
	Port   string  `json:"port"`
	Points []Point `json:"points"`          // none: all
	Inner  bool    `json:"inner,omitempty"` // without the underlay's headers
	Count  int     `json:"count,omitempty"` // frames; 0: until cancelled
	Snap   int     `json:"snap,omitempty"`  // bytes of each; 0: MaxSnap
}

// Captured is a piece of a pcapng file; the pieces in order are the file.
type Captured struct {
	Data   []byte `json:"data"`
	Frames uint64 `json:"frames"` // in the file so far
	Lost   uint64 `json:"lost"`   // so far: the bound on cost left them out
}

// Drops asks which frames are refused, from now on.
type Drops struct {
	Ports  []string      `json:"ports"`            // of these only; none: of all, and those of no port
	Every  time.Duration `json:"every"`            // between answers
	Follow bool          `json:"follow,omitempty"` // until cancelled; else one answer
	// Some leaves out ports that aren't in force. A question that is followed ends
	// with a refusal when one of them comes into force: it is to be asked again.
	Some bool `json:"some,omitempty"`
}

// Refused is what was refused since the answer before.
type Refused struct {
	Rows   []DropRow `json:"rows,omitempty"`   // most first
	Lost   uint64    `json:"lost,omitempty"`   // refused frames that are in no row: the bound on cost left them out
	Totals []Total   `json:"totals,omitempty"` // of the host since the datapath was made; when all ports were asked for
}

// A DropRow is refused frames that are alike.
type DropRow struct {
	Reason string  `json:"reason"`
	Why    string  `json:"why,omitempty"`
	Port   PortRef `json:"port"`  // empty: of no port
	Tuple  string  `json:"tuple"` // between whom, in words
	Count  uint64  `json:"count"`
}

// A Total counts one reason.
type Total struct {
	Reason string `json:"reason"`
	Count  uint64 `json:"count"`
}

// Flows asks for the live flows of a port.
type Flows struct {
	Port string `json:"port"`
}

// A Flow is one that the datapath remembers.
type Flow struct {
	Protocol vnet.Protocol  `json:"protocol"`
	Local    netip.AddrPort `json:"local"`
	Remote   netip.AddrPort `json:"remote"`
	Inbound  bool           `json:"inbound"` // begun by the remote end
	State    string         `json:"state"`
	Age      time.Duration  `json:"age"`
	Idle     time.Duration  `json:"idle"`
	Packets  uint64         `json:"packets"`
	Bytes    uint64         `json:"bytes"`
}
