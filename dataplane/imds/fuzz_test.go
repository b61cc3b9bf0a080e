package imds_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"replug/dataplane/imds"
	"replug/directory/vnet"
)

// FuzzHealth: whatever a guest posts, it is one of the two states of a number, or
// refused; and what it gives as a reason can be stored.
func FuzzHealth(f *testing.F) {
	for _, body := range []string{
		fmt.Sprintf(readyBody, "7", "Ready", ""),
		fmt.Sprintf(readyBody, "18446744073709551615", "NotReady", "<Details><SubStatus>ProvisioningFailed</SubStatus><Description>result=error|reason=&quot;x&quot;</Description></Details>"),
		fmt.Sprintf(readyBody, "-7", "Ready", ""),
		fmt.Sprintf(readyBody, "7", "Ready</State><State>NotReady", ""),
		`<!DOCTYPE h [<!ENTITY a "7"><!ENTITY b "&a;&a;">]><Health><GoalStateIncarnation>&b;</GoalStateIncarnation></Health>`,
		"<Health><GoalStateIncarnation>7</GoalStateIncarnation>" + strings.Repeat("<a>", 1000),
		"<?xml version='1.0' encoding='utf-16'?><Health/>", "", "\x00", "{}",
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		ready, _, why, err := imds.ParseHealth(body)
		switch {
		case err != nil:
			return
		case ready && why != "" || len(why) > 3*512 || !utf8.ValidString(why):
			t.Errorf("ready %t, because %q", ready, why)
		case bytes.Contains(body, []byte("<!")) && !bytes.Contains(body, []byte("<!--")) && !bytes.Contains(body, []byte("<![CDATA[")):
			t.Errorf("read a document with a declaration: %q", body)
		}
	})
}

// TestHealthRefused names what is not read.
func TestHealthRefused(t *testing.T) {
	for name, body := range map[string]string{
		"a DOCTYPE is not allowed":                          `<!DOCTYPE h SYSTEM "file:///etc/passwd">` + fmt.Sprintf(readyBody, "7", "Ready", "")[39:],
		"it is not XML, or cut off":                         fmt.Sprintf(readyBody, "7", "&xxe;", ""),
		"its State is neither Ready nor NotReady":           fmt.Sprintf(readyBody, "7", "ready", ""),
		"its GoalStateIncarnation is not a number":          fmt.Sprintf(readyBody, "", "Ready", ""),
		"an element is there twice, or the document is too": fmt.Sprintf(readyBody, "7", "NotReady</State><State>Ready", ""),
	} {
		if ready, n, _, err := imds.ParseHealth([]byte(body)); err == nil || !strings.HasPrefix(err.Error(), name) {
			t.Errorf("%s: got %t %d, %v", name, ready, n, err)
		}
	}
}

// FuzzHTTP: whatever a guest sends that is HTTP, the service answers, sends nobody
// elsewhere, and says nothing of a document without the dialect's key.
func FuzzHTTP(f *testing.F) {
	for _, r := range []string{
		"GET " + instancePath + " HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: Cloud-Init/22.4.2\r\nAccept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\nMetadata: true\r\n\r\n",
		"GET " + reprovisionPath + " HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n",
		"GET /machine/?comp=goalstate HTTP/1.1\r\nHost: 168.63.129.16\r\nx-ms-agent-name: WALinuxAgent\r\nx-ms-version: 2012-11-30\r\n\r\n",
		"POST /machine?comp=health HTTP/1.1\r\nHost: 168.63.129.16\r\nx-ms-version: 2012-11-30\r\nContent-Type: text/xml; charset=utf-8\r\nContent-Length: 9\r\n\r\n<Health/>",
		"PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n",
		"GET /2009-04-04/meta-data/ HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token: AAAA\r\n\r\n",
		"GET /openstack/latest/meta_data.json HTTP/1.0\r\nHost: 169.254.169.254\r\n\r\n",
		"GET /nocloud/user-data HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
		"GET " + imds.PathConfig + "?wait=60&since=3.7 HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n",
	} {
		f.Add([]byte(r))
	}
	s := imds.New(imds.Config{
		Identify: func(netip.AddrPort) (imds.Caller, bool) { return imds.Caller{Port: 23, Epoch: 7}, true },
		Log:      slog.New(slog.DiscardHandler),
	})
	s.Unlimited()
	s.Publish(23, before, secretDoc("gold"), imds.Guest{Personality: vnet.PersonalityCloudInit})
	f.Fuzz(func(t *testing.T, sent []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(sent)))
		if err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r.WithContext(ctx))
		keyed := len(r.Header["Metadata"])+len(r.Header["X-Ms-Version"])+len(r.Header["X-Aws-Ec2-Metadata-Token"]) > 0
		switch {
		case w.Code >= 300 && w.Code < 400:
			t.Errorf("%q: %d %v", sent, w.Code, w.Header())
		case !keyed && strings.Contains(w.Body.String(), "gold"):
			t.Errorf("%q reads %s", sent, w.Body)
		}
	})
}
