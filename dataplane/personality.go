package dataplane

import (
	"net/netip"

	"replug/dataplane/imds"
	"replug/directory/vnet"
)

// wireServer is where cloud-init's Azure data source reports that it is ready. The
// datapath leads it to the metadata service.
var wireServer = netip.AddrFrom4([4]byte{168, 63, 129, 16})

// personality is how the port's guest is talked to. Of other people's VMs nothing
// is known: they may have an agent.
func (p *port) personality() vnet.Personality {
	p.mu.Lock()
	defer p.mu.Unlock()
	return personalityOf(&p.intent)
}

func personalityOf(in *vnet.Intent) vnet.Personality {
	if in.Machine == nil {
		return vnet.PersonalityAgent
	}
	return in.Machine.Personality
}

// guestOf is what the metadata service tells of a machine at a place.
func guestOf(in *vnet.Intent, place *vnet.Place) imds.Guest {
	g := imds.Guest{Personality: personalityOf(in), MAC: in.MAC, Addrs: place.Addrs, DNS: place.DHCP.DNS}
	if in.Machine != nil {
		g.UUID = in.Machine.UUID
	}
	return g
}
