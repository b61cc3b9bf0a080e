package vnet

import "fmt"

// A Personality is how a guest hears that its network and configuration have
// changed, and what it says when it has followed. It is a property of the image;
// a machine keeps the one that its image had when it was made.
type Personality string

// The personalities. "" is [PersonalityAgent].
const (
	// PersonalityAgent: replug-guest reads our own document and reports on it.
	PersonalityAgent Personality = "agent"
	// PersonalityCloudInit: cloud-init's Azure data source waits in the pool for
	// its link to flap, and reports ready to the wire server, twice.
	PersonalityCloudInit Personality = "cloud-init"
	// PersonalityCloudInitSavable: as before, but it waits for its NIC to be taken
	// out and put in again.
	PersonalityCloudInitSavable Personality = "cloud-init-savable"
	// PersonalityPlain: a DHCP client and nothing else; the lease is the proof.
	PersonalityPlain Personality = "plain"
	// The rest boot once, by the metadata of another cloud, and report nothing:
	// the lease is the proof.
	PersonalityEC2       Personality = "ec2"
	PersonalityOpenStack Personality = "openstack"
	PersonalityNoCloud   Personality = "nocloud"
)

// ParsePersonality reads a personality's word; it returns [ErrPersonality].
func ParsePersonality(s string) (Personality, error) {
	switch p := Personality(s); p {
	case "", PersonalityAgent, PersonalityCloudInit, PersonalityCloudInitSavable, PersonalityPlain,
		PersonalityEC2, PersonalityOpenStack, PersonalityNoCloud:
		return p, nil
	}
	return "", fmt.Errorf("%q: %w", s, ErrPersonality)
}

// CloudInit reports whether the guest goes through the pool by cloud-init's Azure
// data source.
func (p Personality) CloudInit() bool {
	return p == PersonalityCloudInit || p == PersonalityCloudInitSavable
}

// Pools reports whether the guest can wait in the pool. One that boots once has read all
// that it ever reads before it gets there, and would know nothing of its customer.
func (p Personality) Pools() bool { return p.Agent() || p.CloudInit() || p == PersonalityPlain }

// Agent reports whether the guest reports on every document, not on its first alone.
func (p Personality) Agent() bool { return p == "" || p == PersonalityAgent }

// ForAgent is what replug-guest is told of a document: all of it where nobody else in
// the guest would apply it. Beside cloud-init it is the network's and the disks': what
// both were told would be done twice. cloud-init wakes the guest as well.
func (p Personality) ForAgent(d *Document) *Document {
	if d == nil || p.Agent() || p == PersonalityPlain {
		return d
	}
	return &Document{Epoch: d.Epoch, Tag: d.Tag, Instance: d.Instance, DNS: d.DNS, Disks: d.Disks}
}

// Reports reports whether the guest says itself that it has been configured. Of one
// that doesn't, the lease and its traffic are the only proof there is.
func (p Personality) Reports() bool { return p.Agent() || p.CloudInit() }
