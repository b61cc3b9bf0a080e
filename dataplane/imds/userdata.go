package imds

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/mail"
	"net/textproto"

	"replug/directory/vnet"
)

// wakeClock sets the clock of a guest that slept by the hardware's, which did not.
const wakeClock = `now=$(cat /sys/class/rtc/rtc0/since_epoch) && [ "$now" -gt "$(date +%s)" ] && date -s "@$now"; true`

// cloudConfig is what the metadata of other clouds has no word for, as cloud-init's
// own configuration: "" when there is nothing. With a user in it, for clouds that
// can't name one.
func cloudConfig(d *vnet.Document, user bool) string {
	c := map[string]any{}
	if d.Woken != nil {
		c["bootcmd"] = [][]string{{"sh", "-c", wakeClock}}
		c["random_seed"] = map[string]string{"encoding": "b64", "data": base64.StdEncoding.EncodeToString(d.Woken.Seed)}
	}
	if user && d.User != "" {
		c["user"] = map[string]any{"name": d.User}
	}
	if d.TimeZone != "" {
		c["timezone"] = d.TimeZone
	}
	if d.User != "" && d.PasswordHash != "" {
		c["chpasswd"] = map[string]any{"expire": false,
			"users": []map[string]string{{"name": d.User, "password": d.PasswordHash, "type": "hash"}}}
	}
	var files []map[string]string
	for _, f := range d.Files {
		mode := f.Mode
		if mode == 0 {
			mode = 0o644
		}
		files = append(files, map[string]string{"path": f.Path, "permissions": fmt.Sprintf("%04o", mode),
			"encoding": "b64", "content": base64.StdEncoding.EncodeToString([]byte(f.Content))})
	}
	if files != nil {
		c["write_files"] = files
	}
	var commands []string
	for _, r := range d.RunOnce {
		commands = append(commands, r.Command)
	}
	if commands != nil {
		c["runcmd"] = commands
	}
	if len(c) == 0 {
		return ""
	}
	// Read after the owner's user data: that wins, and lists of both are kept.
	c["merge_how"] = "dict(recurse_array,no_replace)+list(append)+str()"
	b, _ := json.Marshal(c)                     // plain strings
	return "#cloud-config\n" + string(b) + "\n" // JSON is YAML
}

// userData is the owner's user data, with what else the document says beside it.
func userData(d *vnet.Document) []byte { return joined(cloudConfig(d, false), d.UserData) }

// joined makes one piece of user data of cloud-config and the owner's.
func joined(config string, own []byte) []byte {
	switch {
	case config == "":
		return own
	case len(own) == 0:
		return []byte(config)
	}
	const boundary = "===replug==="
	var parts bytes.Buffer
	w := multipart.NewWriter(&parts)
	_ = w.SetBoundary(boundary)
	kind := "text/plain" // cloud-init looks at what it begins with
	if bytes.HasPrefix(own, []byte{0x1f, 0x8b}) {
		kind = "application/gzip"
	}
	if m, err := mail.ReadMessage(bytes.NewReader(own)); err == nil && m.Header.Get("Content-Type") != "" {
		inner, _ := w.CreatePart(textproto.MIMEHeader(m.Header)) // it has several parts itself
		_, _ = io.Copy(inner, m.Body)
	} else {
		part(w, kind, own)
	}
	part(w, "text/cloud-config", []byte(config))
	_ = w.Close() // into memory: never fails
	return append([]byte("Content-Type: multipart/mixed; boundary=\""+boundary+"\"\nMIME-Version: 1.0\n\n"), parts.Bytes()...)
}

func part(w *multipart.Writer, kind string, body []byte) {
	p, _ := w.CreatePart(textproto.MIMEHeader{"Content-Type": {kind}, "Content-Transfer-Encoding": {"base64"}})
	_, _ = p.Write([]byte(base64.StdEncoding.EncodeToString(body)))
}
