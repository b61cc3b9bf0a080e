package dataplane

import (
	"context"
	"errors"
	"time"

	"replug/directory/vnet"
)

// errBusy is answered to a guest whose report can't be taken over now.
var errBusy = errors.New("the port is busy: report again")

// events are what happened to a guest since the worker last looked.
type events struct {
	stirred moment    // the guest looked for a router or a lease
	routed  moment    // its question for a router was answered
	acks    [2]moment // a lease of the family was acknowledged
	answers [2]moment // the guest answered for its CA of the family
	reset   time.Time // the guest was reset
	reports []offered
}

// An offered report is taken over when done is closed.
type offered struct {
	vnet.GuestReport
	done chan struct{}
}

// event changes p.events and wakes the worker.
func (p *port) event(f func(*events)) {
	p.mu.Lock()
	f(&p.events)
	p.mu.Unlock()
	p.kick()
}

// stirs says that the guest looks for a router or a lease.
func (p *port) stirs(epoch vnet.Epoch) {
	p.event(func(e *events) { e.stirred = moment{time.Now(), epoch} })
}

// answeredRouter says that the guest was just told of its router because it asked.
func (p *port) answeredRouter(epoch vnet.Epoch) {
	p.event(func(e *events) { e.routed = moment{time.Now(), epoch} })
}

// acked says that a lease of the epoch's address was just handed out.
func (p *port) acked(f family, epoch vnet.Epoch) {
	p.event(func(e *events) { e.acks[f] = moment{time.Now(), epoch} })
}

// answered says that the guest just answered for a CA of the epoch.
func (p *port) answered(f family, epoch vnet.Epoch) {
	p.event(func(e *events) { e.answers[f] = moment{time.Now(), epoch} })
}

// wasReset says that the guest was just reset.
func (p *port) wasReset() {
	p.event(func(e *events) { e.reset = time.Now() })
}

// warn writes a line that the guest can cause as often as it likes: one a minute of
// each kind is enough to know.
func (p *port) warn(what string, args ...any) {
	p.mu.Lock()
	often := time.Since(p.warned[what]) < time.Minute
	if !often {
		if p.warned == nil {
			p.warned = map[string]time.Time{}
		}
		p.warned[what] = time.Now()
	}
	p.mu.Unlock()
	if !often {
		p.log.Warn(what, args...)
	}
}

// offer hands in what the guest reports. It returns once that is on record: the
// guest says it once.
func (p *port) offer(ctx context.Context, r vnet.GuestReport) error {
	const patience = 2 * time.Second
	const most = 8 // reports that wait
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	o := offered{r, make(chan struct{})}
	full := false
	p.event(func(e *events) {
		if full = len(e.reports) >= most; !full {
			e.reports = append(e.reports, o)
		}
	})
	if full {
		return errBusy
	}
	select {
	case <-o.done:
		return nil
	case <-p.done:
		return errBusy
	case <-ctx.Done():
		return errBusy
	}
}
