package vnet

import "net/netip"

// An Intent is what a host should make true of one port: level-triggered, read
// from the store, one row a port. Current is to be in force. Next, when there,
// is to be made ready (staged) and reported as prepared, without any effect yet.
type Intent struct {
	Port    string   `json:"port"` // the port's name, unique in the cluster
	ID      PortID   `json:"id"`
	Host    string   `json:"host"`
	MAC     MAC      `json:"mac"`
	PA      PA       `json:"pa"`
	VM      string   `json:"vm,omitempty"`      // VM id
	Machine *Machine `json:"machine,omitempty"` // nil: the VM is somebody else's, attached by tap
	Tap     string   `json:"tap,omitempty"`     // of an attached port; made by the host otherwise
	Monitor string   `json:"monitor,omitempty"` // QMP socket of an attached port; "" if it can't be bounced
	Current Place    `json:"current"`
	Next    *Place   `json:"next,omitempty"`
	Gone    bool     `json:"gone,omitempty"` // take port and VM down, then report absent
	Limits  Limits   `json:"limits,omitzero"`
}

// A Machine is what the host's compute driver runs.
type Machine struct {
	ID     string `json:"id"`
	UUID   string `json:"uuid"` // SMBIOS, stable for the VM's life
	CPUs   int    `json:"cpus"`
	Memory int    `json:"memory"` // MiB
	Image  string `json:"image"`  // name in the host's image repository
	Disks  []Disk `json:"disks,omitempty"`
	Power  Power  `json:"power"`
	// Personality is that of the image when the machine was made.
	Personality Personality `json:"personality,omitempty"`
}

// A Disk is a qcow2 overlay (OS disk) or an empty qcow2 (data disk) on the host.
type Disk struct {
	ID   string `json:"id"`
	Size int64  `json:"size"` // bytes; 0: the image's
	OS   bool   `json:"os,omitempty"`
}

// Power is what a machine should be, or is.
type Power string

// Powers. A host reports all of them; an intent asks for on or off.
const (
	PowerOn     Power = "on"
	PowerOff    Power = "off"
	PowerAbsent Power = "absent" // no machine, disks deleted
	PowerSaved  Power = "saved"  // off, to go on where it was: see [HoldSnapshot]
)

// A HostInfo is a host as it registers: what control needs to place ports on it
// and what other hosts need to accept frames from it.
type HostInfo struct {
	Name     string            `json:"name"`
	Address  netip.Addr        `json:"address"`   // underlay
	PAPrefix netip.Prefix      `json:"pa_prefix"` // routed to the host; a /32 of Address: all ports share it
	MTU      uint16            `json:"mtu"`       // what the underlay leaves to a guest's IP packet, bytes
	Ports    int               `json:"ports"`     // capacity
	Memory   int               `json:"memory"`    // MiB for VMs; 0: runs none
	Images   []string          `json:"images,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"` // region, cluster, rack
	Version  string            `json:"version"`
	// Personalities of the images, by name; an image without one has an agent.
	Personalities map[string]Personality `json:"personalities,omitempty"`
}

// Underlay is the family of an underlay address, IPv4 or IPv6. All hosts and VTEPs of
// a cluster have one: a host sends VXLAN over its own only.
func Underlay(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}
