package vnet

import "net/netip"

// ChannelName is the virtio-serial port of the second channel between a guest's
// agent and its host. Each message is one line of JSON. It needs no NIC, so a
// guest gets its document, and hears that its network has changed, while its NIC
// leads nowhere. Who speaks is known by the port's socket, never by what is said.
const ChannelName = "org.replug.guest.0"

// Bounds of one line, bytes, without its end.
const (
	MaxToGuest   = 1 << 20
	MaxFromGuest = 8 << 10
)

// A ToGuest is what the host says. One of its parts is set.
type ToGuest struct {
	// To is the [FromGuest] Hello that this is said to: what was queued for an
	// earlier agent is not for the one that reads it.
	To     string        `json:"to,omitempty"`
	Ping   bool          `json:"ping,omitempty"` // the host is there: say hello. To nobody
	Config *Document     `json:"config,omitempty"`
	Moved  *Moved        `json:"moved,omitempty"`
	Answer *ReportAnswer `json:"answer,omitempty"`
}

// A Moved says that the network behind the NIC is another one now: whoever has an
// address is to ask for a new one.
type Moved struct {
	Epoch Epoch          `json:"epoch"`
	Addrs []netip.Prefix `json:"addrs,omitempty"` // what the guest is to have then
}

// A ReportAnswer says what became of a report.
type ReportAnswer struct {
	Epoch Epoch  `json:"epoch"`
	Error string `json:"error,omitempty"` // "": taken
	Again bool   `json:"again,omitempty"` // not now: send it again
}

// A FromGuest is what the guest's agent says. One of its parts is set.
type FromGuest struct {
	Hello  string       `json:"hello,omitempty"` // drawn anew each time: the agent is there
	Report *GuestReport `json:"report,omitempty"`
}
