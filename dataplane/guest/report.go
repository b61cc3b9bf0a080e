package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"replug/directory/vnet"
)

// handle applies d, unless it must not be applied, and returns what to tell the host.
func (a *agent) handle(d *vnet.Document) vnet.GuestReport {
	r := vnet.GuestReport{Epoch: d.Epoch, Kind: vnet.ReportFinal}
	if d.Partial() {
		r.Kind = vnet.ReportPartial
	}
	a.log.say("config epoch %s %s", d.Epoch, r.Kind)
	if err := a.take(d, r.Kind); err != nil {
		r.Error = err.Error()
		if len(r.Error) > 2000 { // the host reads 8 KiB of a report
			r.Error = r.Error[:2000]
		}
		a.log.say("config epoch %s failed: %v", d.Epoch, err)
	}
	r.OK = r.Error == ""
	return r
}

// take applies d once, and remembers it.
func (a *agent) take(d *vnet.Document, kind string) error {
	applied, err := a.state.accepts(d, kind)
	if err != nil || applied {
		return err
	}
	err = a.machine.apply(d, &a.state)
	if err == nil {
		a.state.Epoch, a.state.Kind = d.Epoch, kind
	}
	return errors.Join(err, a.state.save(a.machine)) // a failure may have left a placeholder user
}

// report sends the report that is due, with the guest's own view of itself at this
// moment. A host that refuses it has moved on: the next document says to where.
func (a *agent) report(ctx context.Context) error {
	a.describe(a.pending)
	b, err := json.Marshal(a.pending)
	if err != nil {
		return fmt.Errorf("encode the report: %w", err)
	}
	status, _, err := a.imds.do(ctx, "POST", "/replug/v1/report", b)
	switch {
	case err != nil:
		return err
	case status == statusNoContent || status == statusOK:
		a.log.say("reported %s%s", a.pending.Kind, map[bool]string{false: " failure"}[a.pending.OK])
	case status >= statusServerError || status == statusTooManyRequests:
		return fmt.Errorf("%w: HTTP status %d to the report", errEmpty, status)
	default:
		a.log.say("report for epoch %s is refused: HTTP status %d", a.pending.Epoch, status)
		a.pending = nil
		return fmt.Errorf("%w: HTTP status %d to the report", errRefused, status)
	}
	a.pending = nil
	if a.Once {
		return errDone
	}
	return nil
}

// describe fills in the guest's own view.
func (a *agent) describe(r *vnet.GuestReport) {
	if b, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		r.BootID = strings.TrimSpace(string(b))
	}
	r.Hostname = a.machine.hostname()
	if st := a.link.current(); st.index != 0 {
		r.MAC, r.Addrs = st.mac.String(), a.nic.addresses(st.index)
	}
}
