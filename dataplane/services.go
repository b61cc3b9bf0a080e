package dataplane

import (
	"errors"
	"log/slog"
	"reflect"
	"sync"

	"replug/directory/vnet"
)

// A ServiceKey is what a service answers for.
type ServiceKey struct {
	VNI      vnet.VNI
	VIP      vnet.CA
	Port     uint16
	Protocol vnet.Protocol
}

func keyOf(s *vnet.Service) ServiceKey { return ServiceKey{s.VNI, s.VIP, s.Port, s.Protocol} }

// A policyKey names a group or a service of a network.
type policyKey struct {
	vni  vnet.VNI
	name string
}

// services keeps the datapath's services equal to the directory's.
type services struct {
	datapath Directory
	log      *slog.Logger
	changed  func() // the checks of backends are to be looked at again

	mu  sync.Mutex
	all map[policyKey]vnet.Service
}

func newServices(d Directory, log *slog.Logger) *services {
	return &services{datapath: d, log: log, changed: func() {}, all: map[policyKey]vnet.Service{}}
}

// put writes a new or changed service. It answers at its new address before it
// stops to answer at its old one. One that the datapath can't take stays what it was,
// until the next put tries again.
func (ss *services) put(s vnet.Service) error {
	k := policyKey{s.VNI, s.Name}
	ss.mu.Lock()
	old, known := ss.all[k]
	ss.mu.Unlock()
	if known && reflect.DeepEqual(old, s) {
		return nil
	}
	if err := ss.datapath.SetService(s); err != nil {
		return err
	}
	ss.mu.Lock()
	ss.all[k] = s
	ss.mu.Unlock()
	if known && keyOf(&old) != keyOf(&s) {
		ss.remove(keyOf(&old))
	}
	ss.changed()
	return nil
}

// gone takes a service out of force.
func (ss *services) gone(vni vnet.VNI, name string) {
	ss.mu.Lock()
	s, known := ss.all[policyKey{vni, name}]
	ss.mu.Unlock()
	if known {
		ss.forget(policyKey{vni, name})
		ss.remove(keyOf(&s))
		ss.changed()
	}
}

func (ss *services) forget(k policyKey) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	delete(ss.all, k)
}

// remove takes an address out of force, unless another service has it by now.
func (ss *services) remove(k ServiceKey) {
	ss.mu.Lock()
	for _, s := range ss.all {
		if keyOf(&s) == k {
			ss.mu.Unlock()
			return
		}
	}
	ss.mu.Unlock()
	if err := ss.datapath.DeleteService(k); err != nil {
		ss.log.Error("service that is gone stays in the datapath", "err", err, "vip", k.VIP, "vni", k.VNI)
	}
}

// drop takes the services out of force that keep refuses, and those that an
// earlier session left behind.
func (ss *services) drop(keep func(policyKey) bool) {
	for _, s := range ss.list() {
		if !keep(policyKey{s.VNI, s.Name}) {
			ss.gone(s.VNI, s.Name)
		}
	}
}

// sweep takes out of force what stands in the datapath and is no service of the
// networks that are whole. In the others it may be one that had no room to change.
func (ss *services) sweep(whole func(vnet.VNI) bool) {
	keys, err := ss.datapath.Services()
	known := map[ServiceKey]bool{}
	for _, s := range ss.list() {
		known[keyOf(&s)] = true
	}
	for _, k := range keys {
		if !known[k] && whole(k.VNI) {
			err = errors.Join(err, ss.datapath.DeleteService(k))
		}
	}
	err = errors.Join(err, ss.datapath.ForgetBackends())
	if err != nil {
		ss.log.Error("old services stay in the datapath", "err", err)
	}
}

func (ss *services) list() []vnet.Service {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	out := make([]vnet.Service, 0, len(ss.all))
	for _, s := range ss.all {
		out = append(out, s)
	}
	return out
}
