package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"replug/directory/vnet"
)

// newest returns the epoch of the last document taken.
func (a *agent) newest() vnet.Epoch {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.since
}

// offer takes a document to be applied, in place of one that still waits. False: it
// is not newer than what was taken before.
func (a *agent) offer(d *vnet.Document) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if d.Epoch <= a.since {
		return false
	}
	a.since, a.offered = d.Epoch, d
	if !a.busy {
		a.busy, a.idle = true, make(chan struct{})
	}
	select {
	case a.work <- struct{}{}:
	default:
	}
	return true
}

// applier applies what is offered, one after the other, beside the sessions: a disk
// that is formatted for minutes keeps no link event waiting.
func (a *agent) applier(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.work:
		}
		a.mu.Lock()
		d := a.offered
		a.offered = nil
		a.mu.Unlock()
		if d == nil {
			continue
		}
		t := a.handle(d)
		a.mu.Lock()
		a.since = max(a.since, a.state.Epoch)
		if a.offered == nil {
			a.busy = false
			close(a.idle)
			t.heard = a.post(&t.report)
			a.hand(t)
		}
		a.mu.Unlock()
		a.channel.poke()
	}
}

// post has a report sent, in place of one that still waits, and returns what is closed
// when its fate is known. The caller holds mu.
func (a *agent) post(r *vnet.GuestReport) <-chan struct{} {
	if a.pending != nil {
		close(a.over)
	}
	c := *r
	a.pending, a.pendingAt, a.over = &c, time.Now(), make(chan struct{})
	return a.over
}

// applied waits until nothing is being applied; false: ctx ended.
func (a *agent) applied(ctx context.Context) bool {
	a.mu.Lock()
	busy, idle := a.busy, a.idle
	a.mu.Unlock()
	if !busy {
		return true
	}
	select {
	case <-ctx.Done():
		return false
	case <-idle:
		return true
	}
}

// handle applies d, unless it must not be applied, and returns what to tell the host
// and what is to be run then.
func (a *agent) handle(d *vnet.Document) task {
	r := vnet.GuestReport{Epoch: d.Epoch, Kind: vnet.ReportFinal}
	if d.Partial() {
		r.Kind = vnet.ReportPartial
	}
	a.log.say("config epoch %s %s", d.Epoch, r.Kind)
	a.state.mu.Lock()
	defer a.state.mu.Unlock()
	accepted, err := a.take(d, r.Kind)
	if err != nil {
		a.log.say("config epoch %s failed: %v", d.Epoch, err)
	}
	t := task{wrong: err}
	if accepted {
		t.commands = d.RunOnce
	}
	r.OK, r.Error = err == nil, words(err, a.state.failures(t.commands))
	t.report = r
	return t
}

// words are what a report says of errors: the host reads 8 KiB of one.
func words(errs ...error) string {
	err := errors.Join(errs...)
	if err == nil {
		return ""
	}
	s := err.Error()
	return s[:min(len(s), 2000)]
}

// take applies d once, and remembers it. Not accepted: nothing of it is to be done.
func (a *agent) take(d *vnet.Document, kind string) (accepted bool, err error) {
	if a.state.settle(a.sys.uuid(), d.Instance) {
		a.log.say("what is remembered is another machine's, starting without it")
	}
	applied, err := a.state.accepts(d, kind)
	if err != nil {
		return false, err
	}
	do := a.sys.apply
	if applied {
		do, a.state.inherited = a.sys.again, a.state.Done == nil
	}
	err = do(d, a.state)
	a.state.inherited = false
	if err == nil {
		a.state.Epoch, a.state.Kind = d.Epoch, kind
	}
	if err == nil && !applied && d.Woken != nil {
		a.log.say("went on from a saved state: the clock and the random numbers are renewed")
	}
	return true, errors.Join(err, a.state.save(a.sys.files())) // a failure may have left a placeholder user
}

// due returns the report that waits, with the guest's own view of itself at this
// moment; nil: none.
func (a *agent) due() (*vnet.GuestReport, time.Time) {
	a.mu.Lock()
	if a.pending == nil {
		a.mu.Unlock()
		return nil, time.Time{}
	}
	r, since := *a.pending, a.pendingAt
	a.mu.Unlock()
	a.sys.describe(&r)
	return &r, since
}

// settled forgets the report of an epoch: the host has it, or doesn't want it.
func (a *agent) settled(e vnet.Epoch, how string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.pending != nil && a.pending.Epoch == e {
		a.log.say(how, args...)
		a.pending = nil
		close(a.over)
	}
}

// channelPatience is how long a report waits for the second channel's answer before
// it goes to IMDS.
const channelPatience = 2 * time.Second

// sendReport sends the report that is due to IMDS; false: there is none.
func (a *agent) sendReport(ctx context.Context) (bool, error) {
	answered, live := a.channel.awaits() // before the report is looked at: its answer may come any time
	r, since := a.due()
	if r == nil {
		return false, nil
	}
	if left := channelPatience - time.Since(since); live && left > 0 {
		select {
		case <-answered:
		case <-ctx.Done():
			return true, nil
		case <-time.After(left):
		}
		if r, _ = a.due(); r == nil {
			return true, a.ended(ctx)
		}
	}
	return true, a.report(ctx, r)
}

// report sends r. A host that refuses it has moved on: the next document says to where.
func (a *agent) report(ctx context.Context, r *vnet.GuestReport) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode the report: %w", err)
	}
	status, _, err := a.imds.do(ctx, "POST", "/replug/v1/report", b)
	switch {
	case err != nil:
		return err
	case status == statusNoContent || status == statusOK:
		a.settled(r.Epoch, "reported %s%s", r.Kind, failure(r))
		return a.ended(ctx)
	case status >= statusServerError || status == statusTooManyRequests:
		return fmt.Errorf("%w: HTTP status %d to the report", errEmpty, status)
	}
	a.settled(r.Epoch, "report for epoch %s is refused: HTTP status %d", r.Epoch, status)
	return fmt.Errorf("%w: HTTP status %d to the report", errRefused, status)
}

func failure(r *vnet.GuestReport) string {
	switch {
	case !r.OK:
		return " failure"
	case r.Error != "":
		return ", and what went wrong in its commands"
	}
	return ""
}

// ended is errDone for an agent that was asked for one document only, once its
// commands have run and what went wrong in them is reported as well.
func (a *agent) ended(ctx context.Context) error {
	if !a.Once {
		return nil
	}
	a.mu.Lock()
	ran := a.ran
	a.mu.Unlock()
	select {
	case <-ran:
	case <-ctx.Done():
		return nil
	}
	if r, _ := a.due(); r != nil {
		return nil
	}
	return errDone
}
