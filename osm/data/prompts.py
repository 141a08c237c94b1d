"""The questions asked in training; the first mask prompt is the one of the benchmark and part of the protocol."""

TEST_PROMPT = "What is in the segmentation mask? Assistant:"

MASK_PROMPTS = (
    TEST_PROMPT,
    "What does the segmentation mask show? Assistant:",
    "Name the object in the segmentation mask. Assistant:",
    "Which thing is covered by the mask? Assistant:",
    "What is the masked region? Assistant:",
    "Tell me what the mask covers. Assistant:",
    "What do you see inside the mask? Assistant:",
    "Give the name of the masked area. Assistant:",
    "What is segmented here? Assistant:",
    "Which category does the mask belong to? Assistant:",
    "Identify what lies in the mask. Assistant:",
    "What would you call the masked part? Assistant:",
    "The mask marks a region of the image. What is it? Assistant:",
    "What has been outlined by the segmentation mask? Assistant:",
    "Please name what the mask selects. Assistant:",
    "What kind of thing fills the mask? Assistant:",
    "Say what is under the mask. Assistant:",
    "Which word describes the segmented region? Assistant:",
    "What can be found in the highlighted mask? Assistant:",
)

BOX_PROMPTS = (
    "What is in the bounding box? Assistant:",
    "What does the bounding box show? Assistant:",
    "Name the object in the bounding box. Assistant:",
    "Which thing is enclosed by the box? Assistant:",
    "What is the boxed object? Assistant:",
    "Tell me what the box contains. Assistant:",
    "What do you see inside the box? Assistant:",
    "Give the name of the object in the box. Assistant:",
    "What has been boxed here? Assistant:",
    "Which category does the box belong to? Assistant:",
    "Identify the object in the bounding box. Assistant:",
    "What would you call the boxed object? Assistant:",
    "The box marks an object of the image. What is it? Assistant:",
    "What has been framed by the bounding box? Assistant:",
    "Please name what the box selects. Assistant:",
    "What kind of thing is in the box? Assistant:",
    "Say what is in the rectangle. Assistant:",
    "Which word describes the object in the box? Assistant:",
    "What can be found in the highlighted box? Assistant:",
)
