package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"replug/directory/vnet"
)

// Outcomes of a request to IMDS that are no success.
var (
	errStale     = errors.New("no answer in time")        // the address may be dead
	errNothing   = errors.New("nothing newer is there")   // ask again
	errEmpty     = errors.New("nothing is published yet") // ask again soon
	errMalformed = errors.New("malformed document")       // the host's fault
	errRefused   = errors.New("the host refused")         // the request is wrong for this epoch
)

// maxDocument bounds what is read of a document, bytes.
const maxDocument = 4 << 20

// An imds asks the metadata service. Each request has a connection of its own: one
// from before a swap would lead nowhere.
type imds struct {
	addr string // to connect to
	host string // as the URL has it
	wait time.Duration
}

// newIMDS takes a URL that [Config.Check] has passed.
func newIMDS(base string, wait time.Duration) *imds {
	host := strings.TrimPrefix(base, "http://")
	m := &imds{addr: host, host: host, wait: wait}
	if _, _, err := net.SplitHostPort(host); err != nil {
		m.addr = net.JoinHostPort(strings.Trim(host, "[]"), "80")
	}
	return m
}

// HTTP status codes that mean something here (RFC 9110, section 15).
const (
	statusOK              = 200
	statusNoContent       = 204
	statusNotFound        = 404
	statusTooManyRequests = 429
	statusServerError     = 500
)

// next waits for a document newer than since, no longer than the wait. It returns
// errNothing, errEmpty, errMalformed or errStale.
func (m *imds) next(ctx context.Context, since vnet.Epoch) (*vnet.Document, error) {
	path := fmt.Sprintf("/replug/v1/config?since=%s&wait=%d", since, int(m.wait.Seconds()))
	status, body, err := m.do(ctx, "GET", path, nil)
	switch {
	case err != nil:
		return nil, err
	case status == statusNoContent:
		return nil, errNothing
	case status == statusNotFound:
		return nil, errEmpty
	case status != statusOK:
		return nil, fmt.Errorf("%w: HTTP status %d", errEmpty, status)
	}
	var d vnet.Document
	if err := json.Unmarshal(body, &d); err != nil {
		return nil, fmt.Errorf("%w: %w", errMalformed, err)
	}
	if d.Epoch == 0 {
		return nil, fmt.Errorf("%w: no epoch", errMalformed)
	}
	return &d, nil
}

// follow polls until the link changes or there is news of the network (nil), the
// lease is to be renewed (errDue), or IMDS has been silent for so long that the
// address may be dead (errStale): one second, doubled for each renewal that did not
// help, up to eight.
func (a *agent) follow(ctx context.Context, renewAt time.Time) error {
	if !renewAt.IsZero() {
		due, cancel := context.WithDeadlineCause(ctx, renewAt, errDue)
		defer cancel()
		ctx = due
	}
	answered := time.Now()
	again := 20 * time.Millisecond
	for ctx.Err() == nil {
		asked := time.Now()
		err := a.once(ctx)
		switch {
		case errors.Is(err, errDone):
			return err
		case ctx.Err() != nil:
		case !errors.Is(err, errStale):
			answered, a.stale = time.Now(), 0
		case time.Since(answered) >= time.Second<<min(a.stale, 3):
			return err
		}
		// An answer that took its time has paced the loop already.
		if time.Since(asked) < again {
			pause(ctx, again)
			again = min(again*2, 200*time.Millisecond)
		} else {
			again = 20 * time.Millisecond
		}
	}
	if errors.Is(context.Cause(ctx), errDue) {
		return errDue
	}
	return nil
}

// once sends the report that is due, if any, or waits for the next document and
// until it is applied. An answer of IMDS that brings nothing is an error, for the pace.
func (a *agent) once(ctx context.Context) error {
	if !a.applied(ctx) {
		return nil
	}
	if due, err := a.sendReport(ctx); due {
		return err
	}
	d, err := a.imds.next(ctx, a.newest())
	switch {
	case errors.Is(err, errNothing):
		return nil
	case errors.Is(err, errMalformed):
		if why := err.Error(); why != a.malformed { // it comes again and again
			a.malformed = why
			a.log.say("config is refused: %v", err)
		}
		return err
	case err != nil:
		return err
	case !a.offer(d): // by the second channel meanwhile, or the host forgot what it was asked
		return fmt.Errorf("%w: epoch %s was asked not to come again", errMalformed, d.Epoch)
	}
	return nil
}
