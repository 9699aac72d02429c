package protocol

// Ready answers GET /readyz.
type Ready struct {
	Ready  bool     `json:"ready" shape:"R"`
	Cannot []Cannot `json:"cannot" shape:"R"`
	Error  string   `json:"error,omitzero" shape:"O"` // as every refusal has one
}

// Cannot is something that the control plane cannot do now.
type Cannot struct {
	What string `json:"what" shape:"R"` // serve, write, decide, take-releases
	Code string `json:"code" shape:"R"`
	Text string `json:"text" shape:"R"`
}
