package imds

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"replug/directory/vnet"
)

// The paths of the service.
const (
	PathRoot   = "/replug/v1/"
	PathConfig = "/replug/v1/config"
	PathReport = "/replug/v1/report"
)

// An answer that is not a success. Reason is the metrics label.
type refusal struct {
	code         int
	reason, next string
	closes       bool // the connection isn't worth keeping
}

// serve answers one request. The caller is asked for anew: a connection that
// outlives its epoch isn't worth more than its address.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(slowRequest))
	_ = rc.SetWriteDeadline(time.Now().Add(slowAnswer))
	addr, _ := netip.ParseAddrPort(r.RemoteAddr)
	who, ok := s.cfg.Identify(addr)
	no := readBody(w, r)
	if !ok {
		who, no = Caller{}, &refusal{http.StatusForbidden, "unknown caller", "ask from a VM of this host", true}
	}
	d := dialectOf(r.URL.Path)
	if no == nil {
		no = s.admit(who, d, r)
	}
	if no == nil {
		no = d.answer(s, w, r, who)
	}
	if no != nil {
		s.refuse(w, who.Port, *no)
	}
}

// hosts are the names under which guests ask.
var hosts = map[string]bool{
	"169.254.169.254": true, "169.254.169.254:80": true,
	"168.63.129.16": true, "168.63.129.16:80": true,
	"[fd00:ec2::254]": true, "[fd00:ec2::254]:80": true,
}

// admit refuses what is no request of a guest's own agent. The host, and the
// dialect's header or token, keep a browser or a proxy in the guest from being used
// to ask.
func (s *Server) admit(who Caller, d *dialect, r *http.Request) *refusal {
	switch {
	case !s.allow(who.Port):
		return &refusal{http.StatusTooManyRequests, "too many requests", "ask less often, or poll with wait=60", true}
	case r.Header["X-Forwarded-For"] != nil || r.Header["Forwarded"] != nil:
		return &refusal{http.StatusBadRequest, "forwarded request", "ask without a proxy", true}
	case !hosts[r.Host]:
		return &refusal{http.StatusBadRequest, "foreign host", "ask http://169.254.169.254", true}
	case d == nil:
		return &unknownPath
	}
	return d.key(s, r, who)
}

var unknownPath = refusal{http.StatusNotFound, "unknown path", "ask " + PathConfig, false}

// own are the paths of our own dialect, and how they are asked.
var own = map[string]struct {
	method string
	answer func(*Server, http.ResponseWriter, *http.Request, Caller) *refusal
}{
	PathRoot:   {http.MethodGet, (*Server).version},
	PathConfig: {http.MethodGet, (*Server).config},
	PathReport: {http.MethodPost, (*Server).report},
}

// own answers in our own dialect.
func (s *Server) own(w http.ResponseWriter, r *http.Request, who Caller) *refusal {
	path, known := own[r.URL.Path]
	if !known {
		return &unknownPath
	}
	if no := only(r, path.method); no != nil {
		return no
	}
	return path.answer(s, w, r, who)
}

func (s *Server) version(w http.ResponseWriter, _ *http.Request, _ Caller) *refusal {
	send(w, http.StatusOK, map[string]string{"version": "v1"})
	return nil
}

// only refuses all methods but one.
func only(r *http.Request, method string) *refusal {
	if r.Method != method {
		return &refusal{http.StatusMethodNotAllowed, "wrong method", "use " + method, false}
	}
	return nil
}

// config answers with the document, at once or when there is a newer one.
func (s *Server) config(w http.ResponseWriter, r *http.Request, who Caller) *refusal {
	since, wait, no := pollOf(r)
	if no != nil {
		return no
	}
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(wait + slowRequest))
	_ = rc.SetWriteDeadline(time.Now().Add(wait + slowAnswer))
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	for {
		pub, over := s.published(who)
		doc, changed := pub.doc, pub.changed
		if over {
			return &refusal{http.StatusGone, "epoch is over", "renew the DHCP lease, then ask on a new connection", true}
		}
		if doc != nil && doc.Epoch > since {
			send(w, http.StatusOK, pub.guest.Personality.ForAgent(doc))
			return nil
		}
		select {
		case <-changed:
			continue
		case <-ctx.Done():
		}
		if doc == nil && wait == 0 {
			return &refusal{http.StatusNotFound, "nothing published", "poll " + PathConfig + "?wait=60", false}
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
}

// pollOf reads since (an epoch, as documents have it) and wait (seconds).
func pollOf(r *http.Request) (since vnet.Epoch, wait time.Duration, no *refusal) {
	q := r.URL.Query()
	if v := q.Get("since"); v != "" {
		var err error
		if since, err = vnet.ParseEpoch(v); err != nil {
			return 0, 0, &refusal{http.StatusBadRequest, "bad since", `give the epoch of the document you have, like "3.7"`, false}
		}
	}
	if v := q.Get("wait"); v != "" {
		n, err := strconv.ParseUint(v, 10, 16)
		if err != nil || time.Duration(n)*time.Second > maxWait {
			return 0, 0, &refusal{http.StatusBadRequest, "bad wait", "give seconds, 0 to 60", false}
		}
		wait = time.Duration(n) * time.Second
	}
	return since, wait, nil
}

// report takes a guest's report of the document that it was served.
func (s *Server) report(w http.ResponseWriter, r *http.Request, who Caller) *refusal {
	var rep vnet.GuestReport
	body, _ := io.ReadAll(r.Body) // it is in memory
	switch {
	case json.Unmarshal(body, &rep) != nil:
		return &refusal{http.StatusBadRequest, "report can't be read", "send one JSON object", false}
	case rep.Kind != vnet.ReportPartial && rep.Kind != vnet.ReportFinal:
		return &refusal{http.StatusBadRequest, "unknown kind of report", `say "partial" or "final"`, false}
	}
	pub, over := s.published(who)
	doc := pub.doc
	if doc == nil && !over && low(rep.Epoch) == who.Epoch {
		// A host agent that has just started has not come so far: it needs this report.
		return &refusal{http.StatusServiceUnavailable, "nothing published yet", "send it again", false}
	}
	if doc == nil || doc.Epoch != rep.Epoch {
		return &refusal{http.StatusConflict, "report on another epoch", "ask " + PathConfig + " again", false}
	}
	if doc.Partial() != (rep.Kind == vnet.ReportPartial) {
		return &refusal{http.StatusConflict, "kind is not the document's", "report partial on a document tagged partial, final on another", false}
	}
	if no := s.take(r, who, rep, s.cfg.OnAgent); no != nil {
		return no
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// take hands a report to the parent.
func (s *Server) take(r *http.Request, who Caller, rep vnet.GuestReport, on func(context.Context, vnet.PortID, vnet.GuestReport) error) *refusal {
	rep.At = time.Now()
	if err := on(r.Context(), who.Port, rep); err != nil {
		s.cfg.Log.Debug("guest report not taken", "port", who.Port, "epoch", rep.Epoch, "err", err) // it comes again
		return &refusal{http.StatusServiceUnavailable, "report not taken", "send it again", false}
	}
	return nil
}

// readBody takes in a request's body, of at most maxBody bytes, also where none
// belongs: what is left of one, net/http would swallow after the answer, up to 256 KiB.
func readBody(w http.ResponseWriter, r *http.Request) *refusal {
	var body []byte
	err := error(&http.MaxBytesError{Limit: maxBody})
	if r.ContentLength <= maxBody {
		body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	}
	if err == nil {
		r.Body = io.NopCloser(bytes.NewReader(body))
		return nil
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0)) // no more of it
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return &refusal{http.StatusRequestEntityTooLarge, "body too large", "send at most 8192 bytes", true}
	}
	return &refusal{http.StatusBadRequest, "body cut off", "send the whole body within 5 s", true}
}

func (s *Server) refuse(w http.ResponseWriter, port vnet.PortID, no refusal) {
	s.cfg.Refused(port, no.reason)
	if no.closes {
		w.Header().Set("Connection", "close")
	}
	if no.code == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", no.next[len("use "):])
	}
	send(w, no.code, map[string]string{"error": no.reason, "next": no.next})
}

func send(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // the guest has gone: nobody to tell
}
