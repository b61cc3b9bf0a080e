package store

import (
	"fmt"
	"path"
	"strings"

	"replug/directory/vnet"
)

// Root is the prefix of every key of Replug.
const Root = "/replug/"

// Prefixes that the directory serves to hosts.
const (
	Cluster  = Root + "cluster" // cluster id and era, one row
	Leader   = Root + "leader/" // election
	Hosts    = Root + "hosts/"
	Intents  = Root + "intents/"  // host/port
	Statuses = Root + "statuses/" // host/port
	Mappings = Root + "mappings/" // vni/ca
	Groups   = Root + "groups/"   // vni/name
	Services = Root + "services/" // vni/name
)

// Prefixes that only control reads.
const (
	Tenants  = Root + "tenants/"
	Networks = Root + "networks/" // moniker
	VNIs     = Root + "vnis/"     // vni -> moniker: no VNI twice
	CAs      = Root + "cas/"      // vni/ca -> who has it: no CA twice (invariant 10)
	Slots    = Root + "slots/"    // vni -> the slot that its youngest group was given
	VTEPs    = Root + "vteps/"    // pa/vni/name -> whose it is: no host has a VTEP's address
	Types    = Root + "types/"
	Pools    = Root + "pools/"
	VMs      = Root + "vms/"   // VM id
	Names    = Root + "names/" // tenant/name -> VM id
	Disks    = Root + "disks/"
	Ports    = Root + "ports/"
	PortIDs  = Root + "portids/" // host/id -> port
	MACs     = Root + "macs/"    // MAC -> port: no MAC twice
	Taps     = Root + "taps/"    // host/tap -> port: no attached tap twice
	Swaps    = Root + "swaps/"
	Live     = Root + "live/" // port -> swap id, while it runs: no second swap
	Claims   = Root + "claims/"
	Requests = Root + "requests/" // request id -> operation
	Counters = Root + "counters/"
	Schema   = Root + "schema" // which of these the store has, one row: see control
)

// IntentKey is where the intent of a host's port is.
func IntentKey(host, port string) string { return Intents + host + "/" + port }

// StatusKey is where the last durable status of a host's port is.
func StatusKey(host, port string) string { return Statuses + host + "/" + port }

// MappingKey is where the mapping of a CA is.
func MappingKey(v vnet.VNI, ca vnet.CA) string { return NetworkMappings(v) + ca.String() }

// NetworkMappings is the prefix of a network's mappings.
func NetworkMappings(v vnet.VNI) string { return fmt.Sprintf("%s%08d/", Mappings, v) }

// GroupKey is where a security group of a network is.
func GroupKey(v vnet.VNI, name string) string { return NetworkGroups(v) + name }

// NetworkGroups is the prefix of a network's security groups.
func NetworkGroups(v vnet.VNI) string { return fmt.Sprintf("%s%08d/", Groups, v) }

// SlotKey is where it stands which slot was the last that a group of a network was given.
func SlotKey(v vnet.VNI) string { return fmt.Sprintf("%s%08d", Slots, v) }

// ServiceKey is where a service of a network is.
func ServiceKey(v vnet.VNI, name string) string { return NetworkServices(v) + name }

// NetworkServices is the prefix of a network's services.
func NetworkServices(v vnet.VNI) string { return fmt.Sprintf("%s%08d/", Services, v) }

// CAKey is where it stands who has a CA.
func CAKey(v vnet.VNI, ca vnet.CA) string { return fmt.Sprintf("%s%08d/%s", CAs, v, ca) }

// VTEPKey is where it stands that a VTEP of a network has an underlay address.
func VTEPKey(pa vnet.PA, v vnet.VNI, name string) string {
	return fmt.Sprintf("%s%s/%08d/%s", VTEPs, pa, v, name)
}

// Split returns the parts of key after prefix: Split(Intents, "/replug/intents/h1/p7")
// is "h1", "p7".
func Split(prefix, key string) (first, rest string) {
	first, rest, _ = strings.Cut(strings.TrimPrefix(key, prefix), "/")
	return first, path.Clean(rest)
}
