package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
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
	url  string
	wait time.Duration
	http http.Client
}

func newIMDS(url string, wait time.Duration) *imds {
	return &imds{url: url, wait: wait, http: http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, DialContext: dial, ResponseHeaderTimeout: wait + time.Second},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       wait + 3*time.Second,
	}}
}

// dial gives up after a second. A SYN that is lost would be sent again after that
// second only, so a second one follows sooner.
func dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: 250 * time.Millisecond}
	c, err := d.DialContext(ctx, network, addr)
	if isTimeout(err) && ctx.Err() == nil {
		d.Timeout = 750 * time.Millisecond
		c, err = d.DialContext(ctx, network, addr)
	}
	return c, err
}

// next waits for a document newer than since, no longer than the wait. It returns
// errNothing, errEmpty, errMalformed or errStale.
func (m *imds) next(ctx context.Context, since vnet.Epoch) (*vnet.Document, error) {
	q := url.Values{"since": {since.String()}, "wait": {strconv.Itoa(int(m.wait.Seconds()))}}
	status, body, err := m.do(ctx, http.MethodGet, "/replug/v1/config?"+q.Encode(), nil)
	switch {
	case err != nil:
		return nil, err
	case status == http.StatusNoContent:
		return nil, errNothing
	case status == http.StatusNotFound:
		return nil, errEmpty
	case status != http.StatusOK:
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

// follow polls until the link changes (nil), the lease is to be renewed (nil), or
// IMDS has been silent for so long that the address may be dead (errStale): one
// second, doubled for each renewal that did not help, up to eight.
func (a *agent) follow(ctx context.Context, renewAt time.Time) error {
	if !renewAt.IsZero() {
		due, cancel := context.WithDeadline(ctx, renewAt)
		defer cancel()
		defer func() { a.nic.renew = due.Err() != nil && !time.Now().Before(renewAt) }()
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
			return nil
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
	return nil
}

// once sends the report that is due, if any, or waits for the next document and
// handles it. An answer of IMDS that brings nothing is an error, for the pace.
func (a *agent) once(ctx context.Context) error {
	if a.pending != nil {
		return a.report(ctx)
	}
	d, err := a.imds.next(ctx, a.since)
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
	case d.Epoch <= a.since: // the host forgot what it was asked
		return fmt.Errorf("%w: epoch %s was asked not to come again", errMalformed, d.Epoch)
	}
	r := a.handle(d)
	a.since, a.pending = max(d.Epoch, a.state.Epoch), &r
	return a.report(ctx)
}

// do sends one request and reads the answer. No answer in time, or no way to IMDS,
// is errStale.
func (m *imds) do(ctx context.Context, method, path string, body io.Reader) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, m.url+path, body)
	if err != nil {
		return 0, nil, fmt.Errorf("make the request: %w", err)
	}
	req.Header.Set("Metadata", "true")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := m.http.Do(req)
	if err != nil {
		return 0, nil, fmt.Errorf("%w: %w", errStale, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxDocument+1))
	if err != nil {
		return 0, nil, fmt.Errorf("%w: %w", errStale, err)
	}
	if len(b) > maxDocument {
		return 0, nil, fmt.Errorf("%w: longer than %d bytes", errMalformed, maxDocument)
	}
	return res.StatusCode, b, nil
}
