package compute

import (
	"fmt"
	"time"

	"replug/directory/vnet"
)

// Observe returns what a VM is after its host said s of its port, whose intent is
// in, and whether that is a change worth writing. What is said of another epoch
// than the one in force changes nothing.
func Observe(vm VM, in *vnet.Intent, s vnet.Status, now time.Time) (VM, bool) {
	if s.Epoch != in.Current.Epoch || vm.Phase == Deleting || vm.Phase == Claimed {
		return vm, false
	}
	fresh := s.Guest != nil && s.Guest.Epoch == in.Current.Epoch && !sameReport(vm.Guest, s.Guest)
	changed := fresh
	if fresh {
		report := *s.Guest
		vm.Guest = &report
	}
	switch vm.Phase {
	case Creating, Failed:
		return observeBoot(vm, in, s, now, changed)
	case Ready, Stopped, Pooled:
		return observeLife(vm, s, fresh, changed)
	}
	return vm, changed
}

// Complaint is what an operator is to know of a guest's report, or "". What went wrong
// in the commands that a guest runs once its settings are applied takes no success back.
func Complaint(g *vnet.GuestReport) string {
	switch {
	case !g.OK:
		return "the guest says that it failed: " + g.Error
	case g.Error != "":
		return "the guest has its settings, but says: " + g.Error
	}
	return ""
}

// sameReport reports whether two reports say the same of the same document. A
// guest repeats its report when it isn't sure that it arrived.
func sameReport(a, b *vnet.GuestReport) bool {
	return a != nil && a.Epoch == b.Epoch && a.Kind == b.Kind && a.OK == b.OK && a.Error == b.Error && a.BootID == b.BootID
}

// observeBoot decides whether a VM that was made has succeeded: in part for the
// pool, in full for an owner. The other kind of report never counts (S39, S41).
func observeBoot(vm VM, in *vnet.Intent, s vnet.Status, now time.Time, changed bool) (VM, bool) {
	want, next := vnet.ReportFinal, Ready
	if in.Current.Document != nil && in.Current.Document.Partial() {
		want, next = vnet.ReportPartial, Pooled
	}
	g := vm.Guest
	switch {
	case !vm.Personality.Reports() && s.Power == vnet.PowerOn && leased(s.Phase):
		return vm.succeed(next, s, now), true
	case g != nil && g.Epoch == in.Current.Epoch && g.Kind == want && g.OK:
		vm = vm.succeed(next, s, now)
		vm.Error = Complaint(g)
		return vm, true
	case g != nil && g.Epoch == in.Current.Epoch && !g.OK:
		return vm.fail(Complaint(g)), changed || vm.Phase != Failed
	case s.Phase == vnet.StatusFailed && s.Power != vnet.PowerOn && vm.Phase == Creating:
		return vm.fail(fmt.Sprintf("host %s can't run it: %s", in.Host, s.Error)), true
	case s.Phase == vnet.StatusFailed && vm.Phase == Creating && vm.Error != s.Error:
		vm.Error = s.Error
		return vm, true
	}
	return vm, changed
}

// leased reports whether the guest was seen on its address: all that there is to
// know of one that says nothing.
func leased(p vnet.StatusPhase) bool {
	return p == vnet.StatusLeased || p == vnet.StatusPublished || p == vnet.StatusConfirmed
}

func (vm VM) succeed(next Phase, s vnet.Status, now time.Time) VM {
	vm.Phase, vm.Error, vm.Ready = next, "", now
	for _, h := range s.Hops {
		vm.Timeline = append(vm.Timeline, Hop{Name: h.Name, At: h.At, By: "host"})
	}
	vm.Step(string(next), now)
	return vm
}

func (vm VM) fail(why string) VM {
	vm.Phase, vm.Error = Failed, why
	return vm
}

// observeLife follows the power of a VM that works, and what its guest says of
// later documents (S81).
func observeLife(vm VM, s vnet.Status, fresh, changed bool) (VM, bool) {
	was := vm.Phase
	switch {
	case vm.Phase == Pooled && s.Power == vnet.PowerOff:
		return vm.fail("it stopped while it waited in the pool"), true
	case vm.Phase == Ready && s.Power == vnet.PowerOff:
		vm.Phase = Stopped
	case vm.Phase == Stopped && s.Power == vnet.PowerOn:
		vm.Phase = Ready
	}
	if fresh {
		vm.Error = Complaint(vm.Guest)
	}
	return vm, changed || vm.Phase != was
}

// Overdue returns how long a VM that is being made may still take, and whether it
// is one.
func Overdue(vm *VM, budget time.Duration, now time.Time) (left time.Duration, booting bool) {
	return vm.Created.Add(budget).Sub(now), vm.Phase == Creating
}
