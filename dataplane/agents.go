package dataplane

import (
	"context"

	"replug/dataplane/channel"
	"replug/dataplane/compute"
	"replug/dataplane/imds"
	"replug/directory/vnet"
)

// agents reaches the agents of our own machines; driver is nil on a host without.
type agents struct {
	*channel.Server
	driver compute.Driver
}

// Open finds the machine's socket.
func (a agents) Open(id vnet.PortID, m vnet.Machine) {
	if a.driver == nil {
		return
	}
	if s, err := a.driver.State(context.Background(), m.ID); err == nil && s.Power == vnet.PowerOn {
		a.Server.Open(id, s.Channel)
	}
}

// documents publishes on both ways to a guest.
type documents struct {
	*imds.Server
	channel *channel.Server
}

func (d documents) Publish(id vnet.PortID, e vnet.Epoch, doc *vnet.Document, g imds.Guest) {
	d.Server.Publish(id, e, doc, g)
	d.channel.Publish(id, e, g.Personality.ForAgent(doc))
}

func (d documents) Withdraw(id vnet.PortID) {
	d.Server.Withdraw(id)
	d.channel.Withdraw(id)
}

func (d documents) Forget(id vnet.PortID) {
	d.Server.Forget(id)
	d.channel.Forget(id)
}
